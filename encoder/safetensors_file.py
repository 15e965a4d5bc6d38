"""One safetensors file on any filesystem: its header, and any range of its bytes. No torch.

The header comes from outside and is checked before anything is read or allocated by it.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from encoder.describe import describe

# fsspec is untyped; this is an fsspec.AbstractFileSystem.
Filesystem = Any

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8
_LFS_POINTER = b"version https://git-lfs"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
ITEM_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one line that names the place and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        path: The file, on its filesystem.
        dtype: As safetensors spells it: `F32`, `BF16`.
        shape: Sizes of its dimensions.
        start: First byte, counted from the beginning of the file.
        end: First byte behind it.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        entries: Tensors by name.
        metadata: Strings by name.
    """

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_location(location: str | os.PathLike[str]) -> str:
    """Returns a location as text.

    Raises:
        ValueError: It is neither text nor a path.
    """
    if not isinstance(location, str | os.PathLike):
        raise ValueError(
            f"location={describe(location)} is not a location: pass a folder or a .safetensors "
            "file, local or a URL (s3://bucket/model, hf://org/name)"
        )
    return os.fspath(location)


def open_location(location: str) -> tuple[Filesystem, str]:
    """Returns filesystem and path of a local path or any URL that fsspec knows.

    Raises:
        CheckpointError: No filesystem for the URL, or its package is missing.
    """
    if "://" not in location:
        # fsspec takes `::` in a plain path for a chain of file systems.
        fs = LocalFileSystem()
        return fs, fs._strip_protocol(location).rstrip("/")
    try:
        fs, path = url_to_fs(location)
    except (ValueError, ImportError) as error:
        reason: object = error
        if isinstance(error, ImportError) and location.startswith("hf://"):
            reason = 'hf:// needs huggingface_hub: pip install "patchflow[hub]"'
        raise CheckpointError(f"{location}: {reason}") from error
    return fs, path.rstrip("/")


def read_header(fs: Filesystem, path: str) -> Header:
    """Reads and checks the header of a safetensors file.

    Args:
        fs: The filesystem.
        path: The file on it.

    Raises:
        CheckpointError: No such file, a Git LFS pointer in its place, or the header is corrupt or
            lies: no JSON object, ranges past the end of the file, overlapping, or not as long as
            dtype and shape need.
    """
    try:
        size = fs.size(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{path}: not safetensors: only {size} bytes")
    (length,) = struct.unpack("<Q", read_range(fs, path, 0, _LENGTH_BYTES))
    data_start = _LENGTH_BYTES + length
    if not 0 < length <= _MAX_HEADER_BYTES or data_start > size:
        if read_range(fs, path, 0, min(size, len(_LFS_POINTER))) == _LFS_POINTER:
            raise CheckpointError(f"{path}: a Git LFS pointer, not the weights: run git lfs pull")
        raise CheckpointError(
            f"{path}: corrupt: a header of {length} bytes in a file of {size} bytes"
        )
    try:
        header = json.loads(read_range(fs, path, _LENGTH_BYTES, data_start).decode())
        metadata = header.pop("__metadata__", {})
        entries = {name: _read_entry(path, raw, data_start, size) for name, raw in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt header: {_reason(error)}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: corrupt header: __metadata__ is not an object")
    _check_overlap(path, entries)
    return Header(entries=entries, metadata=metadata)


def read_range(fs: Filesystem, path: str, start: int, end: int) -> bytes:
    """Reads bytes `start` to `end` of a file, and no others.

    Raises:
        CheckpointError: The file ends early.
    """
    # A file of the Hub's filesystem would read 5 MiB ahead of every range.
    options = {"cache_type": "none"} if fs.protocol == "hf" else {}
    # By name: to S3's, the second argument is a version.
    data: bytes = fs.cat_file(path, start=start, end=end, **options)
    if len(data) != end - start:
        raise CheckpointError(f"{path}: truncated: ends within bytes {start} to {end}")
    return data


def _read_entry(path: str, raw: Any, data_start: int, size: int) -> TensorEntry:
    dtype, shape, (start, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    for number in (*shape, start, end):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{number!r} where a size or an offset belongs")
    if not start <= end <= size - data_start:
        raise ValueError(
            f"bytes {start} to {end} of a tensor, where the file holds {size - data_start}"
        )
    # A dtype that came later than this file can only belong to a tensor that is not ours.
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is not None and end - start != item_bytes * math.prod(shape):
        raise ValueError(f"{end - start} bytes for {dtype} of shape {shape}")
    return TensorEntry(
        path=path, dtype=dtype, shape=shape, start=data_start + start, end=data_start + end
    )


def _check_overlap(path: str, entries: Mapping[str, TensorEntry]) -> None:
    ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))
    for (first, before), (second, after) in pairwise(ordered):
        if after.start < before.end:
            raise CheckpointError(f"{path}: corrupt header: {first} and {second} overlap")


def _reason(error: Exception) -> str:
    return f"no {error} in an entry" if isinstance(error, KeyError) else str(error)
