"""The vision tower's tensors in a checkpoint: found, checked, streamed, digested, kept. No torch.

A location is a local folder or any URL that fsspec knows (`s3://`, `hf://`), holding `config.json`
and `model.safetensors` or `model.safetensors.index.json` with its shards; or the location of a
single `.safetensors` file.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from encoder.config import Glm4vVisionConfig
from encoder.digests import DIGEST_BYTES, json_digest
from encoder.safetensors_file import (
    CheckpointError,
    Filesystem,
    TensorEntry,
    open_location,
    read_header,
    read_tensors,
)

_SCHEME = "patchflow-checkpoint-1"
_PREFIXES = ("model.visual.", "visual.", "")
_DTYPES = ("F32", "F16", "BF16")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_REFUSED = "refused: pickled weights can run code; convert to safetensors"
_CONFIG_KEY = "config"


@dataclass(frozen=True, kw_only=True)
class VisionTensors:
    """A tower's tensors, checked against its configuration and not read yet.

    Iterating reads them, within 64 MiB or one tensor at a time, and yields name (without prefix)
    and raw little-endian bytes, in the order of `entries`.

    Attributes:
        location: Where they were found.
        config: The tower's shape.
        entries: Dtype, shape and place of each tensor, by name, in the order of reading.
    """

    location: str
    config: Glm4vVisionConfig
    entries: Mapping[str, TensorEntry]
    _fs: Filesystem = field(repr=False)

    def __iter__(self) -> Iterator[tuple[str, memoryview]]:
        return read_tensors(self._fs, self.entries)


def vision_tensors(location: str) -> VisionTensors:
    """Finds the vision tower in a checkpoint, reading configuration and headers only.

    Args:
        location: A folder or a `.safetensors` file, local or a URL.

    Raises:
        CheckpointError: There is no usable tower; one line that names the place and the reason.
    """
    fs, path = open_location(location)
    if path.endswith(_PICKLE_SUFFIXES):
        raise CheckpointError(f"{location}: {_PICKLE_REFUSED}")
    if path.endswith(".safetensors"):
        header = read_header(fs, path)
        text = header.metadata.get(_CONFIG_KEY)
        raw_config = (
            _read_json(fs, f"{PurePosixPath(path).parent}/config.json", location)
            if text is None
            else _parse_json(text, location)
        )
        config = _read_config(raw_config, location)
        names = _match(header.entries, config, location)
        entries = {bare: header.entries[name] for bare, name in names.items()}
    else:
        config = _read_config(_read_json(fs, f"{path}/config.json", location), location)
        entries = _find_in_folder(fs, path, config, location)
    _check_entries(entries, config, location)
    ordered = sorted(entries.items(), key=lambda item: (item[1].path, item[1].start))
    return VisionTensors(location=location, config=config, entries=dict(ordered), _fs=fs)


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


def _parse_json(text: str | bytes, location: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{location}: broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{location}: broken JSON: not an object")
    return value


def _read_json(fs: Filesystem, path: str, location: str) -> Mapping[str, Any]:
    try:
        text = fs.cat_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{location}: no {PurePosixPath(path).name} there") from error
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
    if fs.exists(f"{path}/model.safetensors"):
        entries = read_header(fs, f"{path}/model.safetensors").entries
        names = _match(entries, config, location)
        return {bare: entries[name] for bare, name in names.items()}
    if not fs.exists(f"{path}/model.safetensors.index.json"):
        if any(str(name).endswith(_PICKLE_SUFFIXES) for name in fs.ls(path, detail=False)):
            raise CheckpointError(f"{location}: {_PICKLE_REFUSED}")
        raise CheckpointError(
            f"{location}: neither model.safetensors nor model.safetensors.index.json there"
        )
    shard_of = _read_index(fs, f"{path}/model.safetensors.index.json", location)
    names = _match(shard_of, config, location)
    shards = {
        shard: read_header(fs, f"{path}/{shard}").entries
        for shard in sorted({shard_of[name] for name in names.values()})
    }
    lost = [name for name in names.values() if name not in shards[shard_of[name]]]
    if lost:
        raise CheckpointError(
            f"{location}: the index promises tensors that its shards lack: {_some(lost)}"
        )
    return {bare: shards[shard_of[name]][name] for bare, name in names.items()}


def _read_index(fs: Filesystem, path: str, location: str) -> dict[str, str]:
    weight_map = _read_json(fs, path, location).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{location}: the index has no weight_map")
    for shard in weight_map.values():
        # Also refuses what only another system takes for a path.
        if not isinstance(shard, str) or PurePosixPath(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{location}: the index points outside the folder: {shard!r}")
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{location}: the index names {shard!r}, not safetensors")
    return weight_map


def _match(names: Iterable[str], config: Glm4vVisionConfig, location: str) -> dict[str, str]:
    """Returns the tower's names in the checkpoint by bare name."""
    found = set(names)
    expected = config.tensor_shapes()
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + bare in found for bare in expected))
    missing = [bare for bare in expected if prefix + bare not in found]
    if len(missing) == len(expected):
        raise CheckpointError(
            f"{location}: no GLM-4V vision tensors; looked for model.visual.*, visual.* and bare"
        )
    if missing:
        raise CheckpointError(
            f"{location}: {len(missing)} of {len(expected)} vision tensors missing: "
            f"{_some(prefix + bare for bare in missing)}"
        )
    # Left out in silence, a bias or a norm would change every result.
    modules = {bare.split(".")[0] for bare in expected}
    surplus = [
        name
        for name in sorted(found)
        if name.startswith(prefix)
        and name.removeprefix(prefix).split(".")[0] in modules
        and name.removeprefix(prefix) not in expected
    ]
    if surplus:
        raise CheckpointError(
            f"{location}: the config does not account for {len(surplus)} of the vision tensors: "
            f"{_some(surplus)}"
        )
    return {bare: prefix + bare for bare in expected}


def _check_entries(
    entries: Mapping[str, TensorEntry], config: Glm4vVisionConfig, location: str
) -> None:
    for name, shape in config.tensor_shapes().items():
        entry = entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{location}: {name} is {entry.dtype}; supported: {', '.join(_DTYPES)}"
            )
        if entry.shape != shape:
            raise CheckpointError(
                f"{location}: {name} has shape {entry.shape}; the config makes it {shape}"
            )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
