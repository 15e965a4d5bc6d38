"""The names of an output's objects (`DESIGN`: Output), and nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from pipeline.location import digest

if TYPE_CHECKING:
    from pipeline.config import Level

RUN = "_patchflow/run.json"
COMMITS = "_patchflow/commits"
INTENTS = "_patchflow/intents"
DEVICES = "_patchflow/devices"
MANIFESTS = "_patchflow/manifest"
EMBEDDINGS = "embeddings"
ERRORS = "errors"
# The folder of segments' rows that a level adds.
SEGMENTS: dict[Level, str] = {"frame": "frames", "token": "tokens"}

INTENT_SUFFIX = ".arrow"

_SHARD = re.compile(r"g(\d{6})-(\d{8})")
_GENERATION = re.compile(r"g(\d{6})\.json")

# File systems take 255 bytes as a name, S3 takes 1,024 as a key of several.
_LONGEST_NAME = 200

# Hive's own word for a null, which every reader of partitioned tables knows.
NULL = "__HIVE_DEFAULT_PARTITION__"


def encoder(digest: str) -> str:
    """The kept vision tower of a checkpoint."""
    return f"_patchflow/encoder/{digest}.safetensors"


def device(digest: str) -> str:
    """What the quick check of a kind of device found, see `pipeline.doctor.quick`."""
    return f"{DEVICES}/{digest}.json"


def generation(number: int) -> str:
    """The object whose existence says that a generation exists."""
    return f"{MANIFESTS}/g{number:06d}.json"


def generation_number(name: str) -> int | None:
    """The number in a generation object's last name part, None for any other name."""
    match = _GENERATION.fullmatch(name)
    return int(match[1]) if match else None


def shard(generation: int, index: int) -> str:
    """A shard's id."""
    return f"g{generation:06d}-{index:08d}"


def parse_shard(name: str) -> tuple[int, int] | None:
    """`(generation, index)` of a shard id, None for any other name."""
    match = _SHARD.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def generation_of(shard: str) -> int:
    """The number of a shard's generation."""
    parsed = parse_shard(shard)
    assert parsed is not None, shard
    return parsed[0]


def marker(shard: str) -> str:
    """The marker that says that a shard is committed."""
    return f"{COMMITS}/{shard}.json"


def intent(shard: str) -> str:
    """Every byte of a shard that is being committed."""
    return f"{INTENTS}/{shard}{INTENT_SUFFIX}"


def embeddings(shard: str, values: dict[str, object]) -> str:
    """A shard's embeddings, in the folder of its partition values."""
    return _parted(EMBEDDINGS, shard, values)


def segments(shard: str, values: dict[str, object], level: Level) -> str:
    """A shard's segments, in the folder of its partition values; of a level that has some."""
    return _parted(SEGMENTS[level], shard, values)


def objects(shard: str, values: dict[str, object], level: Level) -> list[str]:
    """The names of all that a shard consists of, in the order of its marker."""
    own = [segments(shard, values, level)] if level in SEGMENTS else []
    return [embeddings(shard, values), errors(shard), *own]


def partition(values: dict[str, object]) -> str:
    """The folders of partition values, one a column; empty without any."""
    return "/".join(_folder(key, value) for key, value in values.items())


def errors(shard: str) -> str:
    """A shard's errors."""
    return f"{ERRORS}/{shard}.parquet"


def _parted(folder: str, shard: str, values: dict[str, object]) -> str:
    return "/".join(filter(None, (folder, partition(values), f"{shard}.parquet")))


def _folder(key: str, value: object) -> str:
    """`key=value`, percent-encoded; what cannot be a name keeps its beginning, and a digest.

    That is what is too long, and a text that readers take for null. `+` never comes out of
    `quote`, so no other value has such a name. The whole value is in the manifest and in the
    markers.
    """
    name = quote(key, safe="")
    if name[0] in "._":  # Readers would take the folder for hidden.
        name = f"%{ord(name[0]):02X}{name[1:]}"
    text = NULL if value is None else quote(str(value), safe="")
    name = f"{name}={text}"
    if len(name) <= _LONGEST_NAME and (value is None or text != NULL):
        return name
    # Readers refuse half a character.
    kept = unquote_to_bytes(name)[: _LONGEST_NAME // 4].decode(errors="ignore")
    return f"{quote(kept, safe='=')}+{digest(name.encode())}"
