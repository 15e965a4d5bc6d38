"""One safetensors file on any filesystem: its header, and any range of its bytes. No torch.

The header comes from outside and is checked before anything is read or allocated by it.
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from encoder.describe import describe, shown
from encoder.json_text import parse_object
from encoder.local_file import check_json_size, check_local_file

# fsspec is untyped; this is an fsspec.AbstractFileSystem.
Filesystem = Any

_MAX_HEADER_BYTES = 16 * 2**20  # the format allows 100 MB; 17,664 tensors in one file take 3
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 2**63 - 1
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


def file_size(fs: Filesystem, path: str) -> int:
    """Returns the size in bytes of a file that may be read as part of a checkpoint.

    Raises:
        CheckpointError: It is no regular file, of no known size, or a symbolic link to one that is
            not part of the checkpoint.
        FileNotFoundError, NotADirectoryError: There is none.
        Exception: The filesystem's own.
    """
    if isinstance(fs, LocalFileSystem):
        try:
            return check_local_file(Path(path))
        except ValueError as error:
            raise CheckpointError(f"{shown(path)}: {error}") from error
    info = fs.info(path)
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        raise CheckpointError(f"{shown(path)}: not a file of known size")
    size: int = info["size"]
    return size


def read_json_file(fs: Filesystem, path: str) -> bytes:
    """Reads a whole file that is to be JSON.

    Raises:
        CheckpointError: As `file_size`, or it is too large.
        FileNotFoundError, NotADirectoryError: There is none.
        Exception: The filesystem's own.
    """
    size = file_size(fs, path)
    try:
        check_json_size(size)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: {error}") from error
    return bytes(read_range(fs, path, 0, size)) if size else b""


def read_header(fs: Filesystem, path: str) -> Header:
    """Reads and checks the header of a safetensors file.

    Args:
        fs: The filesystem.
        path: The file on it.

    Raises:
        CheckpointError: No such file, a Git LFS pointer in its place, or the header is corrupt or
            lies: no JSON object, ranges that overlap, leave bytes out or pass the end of the file,
            or are not as long as dtype and shape need.
    """
    place = shown(path)
    try:
        size = file_size(fs, path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{place}: no such file") from error
    data_start = _LENGTH_BYTES + _header_length(fs, path, size)
    try:
        header = parse_object(bytes(read_range(fs, path, _LENGTH_BYTES, data_start)))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("__metadata__ is not an object of strings")
        entries = {name: _read_entry(path, raw, data_start, size) for name, raw in header.items()}
        _check_order(entries, data_start, size)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{place}: corrupt header: {_reason(error)}") from error
    return Header(entries=entries, metadata=metadata)


def _header_length(fs: Filesystem, path: str, size: int) -> int:
    place = shown(path)
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{place}: not safetensors: only {size} bytes")
    length: int = struct.unpack("<Q", read_range(fs, path, 0, _LENGTH_BYTES))[0]
    if not 0 < length <= size - _LENGTH_BYTES:
        if read_range(fs, path, 0, min(size, len(_LFS_POINTER))) == _LFS_POINTER:
            raise CheckpointError(f"{place}: a Git LFS pointer, not the weights: run git lfs pull")
        raise CheckpointError(
            f"{place}: corrupt: a header of {length} bytes in a file of {size} bytes"
        )
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{place}: a header of {length} bytes is over {_MAX_HEADER_BYTES}, the most supported"
        )
    return length


def read_range(fs: Filesystem, path: str, start: int, end: int) -> memoryview:
    """Reads bytes `start` to `end` of a file, of which there is one at least, and no others.

    Raises:
        CheckpointError: The file ends early.
    """
    if isinstance(fs, LocalFileSystem):
        data = _read_local(path, start, end - start)
    else:
        # A file of the Hub's filesystem would read 5 MiB ahead of every range.
        options = {"cache_type": "none"} if fs.protocol == "hf" else {}
        # By name: to S3's, the second argument is a version.
        data = memoryview(fs.cat_file(path, start=start, end=end, **options))
    if len(data) != end - start:
        raise CheckpointError(f"{shown(path)}: truncated: ends within bytes {start} to {end}")
    return data


def _read_local(path: str, start: int, size: int) -> memoryview:
    # A mapping of its own goes back to the system. Of malloc's memory, each thread that reads
    # keeps some: with eight of them, a load took up to 175 MiB beside the weights, not 80.
    data = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    with Path(path).open("rb") as file:
        file.seek(start)
        return memoryview(data)[: file.readinto(data)]


def _read_entry(path: str, raw: Any, data_start: int, size: int) -> TensorEntry:
    dtype, shape, (start, end) = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{describe(dtype)} of shape {describe(shape)} is no tensor's")
    for number in (*shape, start, end):
        is_number = isinstance(number, int) and not isinstance(number, bool)
        if not is_number or not 0 <= number <= _MAX_NUMBER:
            raise ValueError(f"{describe(number)} where a size or an offset belongs")
    if not start <= end <= size - data_start:
        raise ValueError(
            f"bytes {start} to {end} of a tensor, where the file holds {size - data_start}"
        )
    # A dtype that came later than this file can only belong to a tensor that is not ours.
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is not None and end - start != item_bytes * math.prod(shape):
        raise ValueError(f"{end - start} bytes for {dtype} of shape {describe(tuple(shape))}")
    return TensorEntry(
        path=path, dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end
    )


def _check_order(entries: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    """Raises a ValueError unless every byte behind the header is one tensor's."""
    end, before = data_start, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < end:
            raise ValueError(f"{shown(before)} and {shown(name)} overlap")
        _check_no_hole(end, entry.start)
        end, before = entry.end, name
    _check_no_hole(end, size)


def _check_no_hole(start: int, end: int) -> None:
    if start != end:
        raise ValueError(f"bytes {start} to {end} of the file are no tensor's")


def _reason(error: Exception) -> str:
    return f"no {error} in an entry" if isinstance(error, KeyError) else str(error)
