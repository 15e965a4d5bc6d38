"""The vision tower's tensors in a checkpoint: found, checked, streamed, digested, kept. No torch.

A location is a local folder or any URL that fsspec knows (`s3://`, `hf://org/name[@revision]`),
holding `config.json` and `model.safetensors` or `model.safetensors.index.json` with its shards; or
the location of a single `.safetensors` file.
"""

import hashlib
import json
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from encoder.byte_ranges import in_file_order, read_pieces, read_tensors
from encoder.config import PRESETS, Glm4vVisionConfig
from encoder.describe import describe, shown
from encoder.digests import DIGEST_BYTES, json_digest
from encoder.hub import hub_hint, pin_location
from encoder.json_text import parse_object
from encoder.safetensors_file import (
    CheckpointError,
    Filesystem,
    TensorEntry,
    open_location,
    read_header,
    read_json_file,
)

_SCHEME = "patchflow-checkpoint-1"
_PREFIXES = ("model.visual.", "visual.", "")
_DTYPES = ("F32", "F16", "BF16")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".bin.index.json")
_PICKLE_REFUSED = "refused: pickled weights can run code; convert to safetensors"
_CONFIG_KEY = "config"
_MOST_NAMED = 10  # tensors of a kind that an error names
_HEADERS_AT_A_TIME = 8  # three requests each, of which an object store serves many at a time


@dataclass(frozen=True, kw_only=True)
class VisionTensors:
    """A tower's tensors, checked against its configuration and not read yet.

    Iterating reads them whole and yields name (without prefix) and raw little-endian bytes, in the
    order of `entries`; one tensor and about 70 MiB are in memory.

    Attributes:
        location: Where they were found; on the Hub, with the commit.
        config: The tower's shape.
        entries: Dtype, shape and place of each tensor, by name, in the order of reading.
    """

    location: str
    config: Glm4vVisionConfig
    entries: Mapping[str, TensorEntry]
    _fs: Filesystem = field(repr=False)

    def __iter__(self) -> Iterator[tuple[str, memoryview]]:
        return read_tensors(self._fs, self.entries)

    def pieces(self) -> Iterator[tuple[str, int, memoryview]]:
        """Reads them in pieces of at most 8 MiB, as these arrive; about 70 MiB are in memory.

        Yields:
            Name, first byte counted from the tensor's, and the bytes of whole values.

        Raises:
            CheckpointError: A file ends before a tensor does.
            Exception: The filesystem's own.
        """
        for piece, data in read_pieces(self._fs, self.entries, in_order=False):
            yield piece.name, piece.offset, data


def vision_tensors(location: str | os.PathLike[str]) -> VisionTensors:
    """Finds the vision tower in a checkpoint, reading configuration, index and headers only.

    On the Hub, all of it is of the commit that the location names now.

    Args:
        location: A folder or a `.safetensors` file, local or a URL.

    Raises:
        CheckpointError: There is no usable tower; one line that names the place and the reason,
            or counts all tensors that are missing, unexpected or of another shape or dtype.
        ValueError: The location is neither text nor a path.
    """
    location = pin_location(location)
    fs, path = open_location(location)
    if path.lower().endswith(_PICKLE_SUFFIXES):
        raise CheckpointError(f"{location}: {_PICKLE_REFUSED}")
    if path.endswith(".safetensors"):
        header = read_header(fs, path)
        text = header.metadata.get(_CONFIG_KEY)
        raw_config = (
            _read_json(fs, f"{PurePosixPath(path).parent}/config.json", location)
            if text is None
            else _parse_json(text.encode(), location)
        )
        config = _read_config(raw_config, location)
        entries = _check_tower(header.entries, header.entries, config, location)
    else:
        config = _read_config(_read_json(fs, f"{path}/config.json", location), location)
        entries = _find_in_folder(fs, path, config, location)
    return VisionTensors(location=location, config=config, entries=in_file_order(entries), _fs=fs)


def checkpoint_digest(tensors: VisionTensors) -> str:
    """Returns 128 bits, hexadecimal, of configuration and weights; reads every tensor once.

    The same tower has the same digest wherever it lies and however it is sharded.
    """
    lines = [
        [name, tensors.entries[name].dtype, list(tensors.entries[name].shape), _digest(data)]
        for name, data in tensors
    ]
    config = tensors.config.to_dict()
    return json_digest({"scheme": _SCHEME, "config": config, "tensors": sorted(lines)})


def write_vision_tower(tensors: VisionTensors, file: BinaryIO) -> None:
    """Streams the tower into one safetensors file that `vision_tensors` reads back.

    Names lose their prefix, dtypes stay, the configuration goes into the file's metadata.

    Args:
        tensors: What to write.
        file: Opened for writing bytes.
    """
    config = json.dumps(tensors.config.to_dict(), sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", _CONFIG_KEY: config}}
    offset = 0
    for name, entry in tensors.entries.items():
        end = offset + entry.end - entry.start
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(struct.pack("<Q", len(text)) + text)
    for _, data in tensors:
        file.write(data)


def _digest(data: memoryview) -> str:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def _parse_json(text: bytes, place: str) -> Mapping[str, Any]:
    try:
        return parse_object(text)
    except ValueError as error:
        raise CheckpointError(f"{place}: broken JSON: {error}") from error


def _read_json(fs: Filesystem, path: str, location: str) -> Mapping[str, Any]:
    try:
        text = read_json_file(fs, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = hub_hint(location)
        if "/" not in location and location not in PRESETS:
            hint = f" (nor is it a preset: {', '.join(PRESETS)})"
        raise CheckpointError(f"{location}: no {PurePosixPath(path).name} there{hint}") from error
    return _parse_json(text, f"{location}: {PurePosixPath(path).name}")


def _read_config(raw: Mapping[str, Any], location: str) -> Glm4vVisionConfig:
    try:
        return Glm4vVisionConfig.from_dict(raw)
    except ValueError as error:
        raise CheckpointError(f"{location}: {error}") from error


def _find_in_folder(
    fs: Filesystem, path: str, config: Glm4vVisionConfig, location: str
) -> dict[str, TensorEntry]:
    """Returns the tower's tensors by bare name; of a sharded model, opens only their shards."""
    if _is_there(fs, f"{path}/model.safetensors"):
        entries = read_header(fs, f"{path}/model.safetensors").entries
        return _check_tower(entries, entries, config, location)
    if not _is_there(fs, f"{path}/model.safetensors.index.json"):
        names = fs.ls(path, detail=False)
        if any(str(name).lower().endswith(_PICKLE_SUFFIXES) for name in names):
            raise CheckpointError(f"{location}: {_PICKLE_REFUSED}")
        raise CheckpointError(
            f"{location}: neither model.safetensors nor model.safetensors.index.json there"
        )
    shard_of = _read_index(fs, f"{path}/model.safetensors.index.json", location)
    prefix = _find_prefix(shard_of, config, location)
    expected = {prefix + bare for bare in config.tensor_shapes()}
    shards = sorted({shard for name, shard in shard_of.items() if name in expected})

    def read(shard: str) -> dict[str, TensorEntry]:
        found = read_header(fs, f"{path}/{shard}").entries
        return {
            name: found[name] for name in found.keys() & expected if shard_of.get(name) == shard
        }

    with ThreadPoolExecutor(_HEADERS_AT_A_TIME) as pool:
        parts = list(pool.map(read, shards))
    entries = {name: entry for part in parts for name, entry in part.items()}
    return _check_tower(shard_of, entries, config, location)


def _is_there(fs: Filesystem, path: str) -> bool:
    # Not fs.exists, which on some filesystems is False when storage fails.
    try:
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _read_index(fs: Filesystem, path: str, location: str) -> dict[str, str]:
    weight_map = _read_json(fs, path, location).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{location}: the index has no weight_map")
    for shard in weight_map.values():
        # Also refuses what only another system takes for a path.
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            fault = f"points outside the folder: {describe(shard)}"
        elif not shard.endswith(".safetensors") or shown(shard) != shard:
            fault = f"names {describe(shard)}, not safetensors"
        else:
            continue
        raise CheckpointError(f"{location}: the index {fault}")
    return weight_map


def _find_prefix(names: Collection[str], config: Glm4vVisionConfig, location: str) -> str:
    expected = config.tensor_shapes()
    counts = {prefix: sum(prefix + bare in names for bare in expected) for prefix in _PREFIXES}
    prefix = max(_PREFIXES, key=lambda prefix: counts[prefix])
    if counts[prefix] == 0:
        raise CheckpointError(
            f"{location}: no GLM-4V vision tensors; looked for model.visual.*, visual.* and bare"
        )
    return prefix


def _check_tower(
    names: Collection[str],
    entries: Mapping[str, TensorEntry],
    config: Glm4vVisionConfig,
    location: str,
) -> dict[str, TensorEntry]:
    """Returns the tower's tensors by bare name, or raises all that is wrong with them.

    Args:
        names: Of all tensors of the checkpoint, as its index or its only header has them.
        entries: What the headers say of them.
        config: The tower's shape.
        location: For the message.
    """
    expected = config.tensor_shapes()
    prefix = _find_prefix(names, config, location)
    tower = {bare: entries[prefix + bare] for bare in expected if prefix + bare in entries}
    kinds = {
        "missing": [prefix + bare for bare in expected if prefix + bare not in names],
        "missing from the shard that the index names": [
            prefix + bare for bare in expected if prefix + bare in names and bare not in tower
        ],
        "that the config does not account for": _surplus(names, prefix, expected),
        "of another shape": [
            f"{prefix + bare} is {describe(entry.shape)}, the config makes it {expected[bare]}"
            for bare, entry in tower.items()
            if entry.shape != expected[bare]
        ],
        f"of another dtype than {', '.join(_DTYPES)}": [
            f"{prefix + bare} is {shown(entry.dtype)}"
            for bare, entry in tower.items()
            if entry.dtype not in _DTYPES
        ],
    }
    faults = [f"{len(found)} {kind}: {_some(found)}" for kind, found in kinds.items() if found]
    if faults:
        raise CheckpointError(
            f"{location}: vision tensors do not fit the config, which has {len(expected)}: "
            + "; ".join(faults)
        )
    return tower


def _surplus(names: Iterable[str], prefix: str, expected: Collection[str]) -> list[str]:
    """Returns vision tensors that nothing would read.

    Left out in silence, a bias or a norm would change every result.
    """
    modules = {bare.split(".")[0] for bare in expected}
    found = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [
        shown(prefix + bare)
        for bare in found
        if bare.split(".")[0] in modules and bare not in expected
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
