"""The names of an output's objects (`DESIGN`: Output), and nothing else."""

from __future__ import annotations

import re
from urllib.parse import quote

RUN = "_patchflow/run.json"
COMMITS = "_patchflow/commits"
MANIFESTS = "_patchflow/manifest"
EMBEDDINGS = "embeddings"
ERRORS = "errors"

_SHARD = re.compile(r"g(\d{6})-(\d{8})")
_GENERATION = re.compile(r"g(\d{6})\.json")

# Hive's own word for a null, which every reader of partitioned tables knows.
NULL = "__HIVE_DEFAULT_PARTITION__"


def encoder(digest: str) -> str:
    """The kept vision tower of a checkpoint."""
    return f"_patchflow/encoder/{digest}.safetensors"


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


def marker(shard: str) -> str:
    """The marker that says that a shard is committed."""
    return f"{COMMITS}/{shard}.json"


def embeddings(shard: str, values: dict[str, object]) -> str:
    """A shard's embeddings, in the folder of its partition values."""
    return "/".join(filter(None, (EMBEDDINGS, partition(values), f"{shard}.parquet")))


def partition(values: dict[str, object]) -> str:
    """The folders of partition values, one a column; empty without any."""
    return "/".join(f"{quote(key, safe='')}={_value(value)}" for key, value in values.items())


def errors(shard: str) -> str:
    """A shard's errors."""
    return f"{ERRORS}/{shard}.parquet"


def _value(value: object) -> str:
    return NULL if value is None else quote(str(value), safe="")
