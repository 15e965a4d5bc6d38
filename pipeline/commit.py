"""The last stage: one block in, one shard out. Data first, marker last."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout, schema
from pipeline.errors import InternalError
from pipeline.location import digest, join
from pipeline.storage import storage_for

# What a shard's bits may depend on, recorded in its marker.
_LIBRARIES = ("patchflow", "torch", "pillow", "numpy", "pyarrow", "ray")


@dataclass(frozen=True, kw_only=True)
class CommitConfig:
    """What the stage needs to know.

    `columns` are the caller's own, `embedding` is the vectors' fixed_size_list type, `rows` the
    items of each shard of this run, by id.
    """

    output: str
    shard_rows: int
    partition_by: tuple[str, ...]
    columns: tuple[str, ...]
    embedding: pa.DataType
    rows: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object of a shard: its name below the output, size and 128-bit blake2b."""

    name: str
    rows: int
    size_bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a marker says of its shard."""

    shard: str
    rows: int
    embedded: int
    failed: int
    errors: dict[str, int]
    tokens: int
    objects: list[Stored]
    device: str
    versions: dict[str, str]
    committed_at: str

    def to_json(self) -> bytes:
        """One JSON object."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Marker:
        """The marker that `to_json` wrote.

        Raises:
            ValueError: It is no such thing.
        """
        try:
            raw = json.loads(data)
            raw["objects"] = [Stored(**stored) for stored in raw["objects"]]
            return cls(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no marker: {error}") from error


def commit_shard(block: pa.Table, config: CommitConfig) -> pa.Table:
    """Writes a shard's objects and then its marker; a shard that has one is left as it is.

    Args:
        block: One shard's `schema.encoded` rows, filled up to `shard_rows` with empty ones.
        config: Where to, and what is expected.

    Returns:
        One row: `marker`, the shard's marker as JSON.

    Raises:
        InternalError: The block is not exactly one shard; nothing is written.
        StorageError: Storage failed; the shard stays open.
    """
    shard, items = _check(block, config)
    storage = storage_for(config.output)
    place = join(config.output, layout.marker(shard))
    if storage.stat(place) is not None:
        return _record(storage.read(place))
    marker = _write(shard, items, config)
    if not storage.create(place, marker.to_json()):
        return _record(storage.read(place))
    return _record(marker.to_json())


def _check(block: pa.Table, config: CommitConfig) -> tuple[str, pa.Table]:
    shards = pc.unique(block["shard"]).to_pylist()
    if len(shards) != 1 or shards[0] not in config.rows or block.num_rows != config.shard_rows:
        raise InternalError(
            f"a block of {block.num_rows} rows of shards {shards[:4]} is not one of this "
            f"run's shards of {config.shard_rows}"
        )
    items = block.filter(pc.is_valid(block["item_id"]))
    expected = config.rows[shards[0]]
    distinct = len(pc.unique(items["item_id"]))
    if not items.num_rows == distinct == expected:
        raise InternalError(
            f"{shards[0]} holds {items.num_rows} rows of {distinct} items; it has {expected}"
        )
    for name in config.partition_by:
        values = pc.unique(items[name]).to_pylist()
        if len(values) != 1:
            raise InternalError(f"{shards[0]} has several values of {name}: {values[:4]}")
    return shards[0], items


def _write(shard: str, items: pa.Table, config: CommitConfig) -> Marker:
    failed = pc.is_valid(items["error_code"])
    good, bad = items.filter(pc.invert(failed)), items.filter(failed)
    partition = {name: items[name][0].as_py() for name in config.partition_by}
    objects = [
        _put(config.output, layout.embeddings(shard, partition), _embeddings(shard, good, config)),
        _put(config.output, layout.errors(shard), bad.select(schema.ERRORS.names)),
    ]
    return Marker(
        shard=shard,
        rows=items.num_rows,
        embedded=good.num_rows,
        failed=bad.num_rows,
        errors=dict(sorted(Counter(bad["error_code"].to_pylist()).items())),
        tokens=pc.sum(good["num_tokens"]).as_py() or 0,
        objects=objects,
        device=", ".join(sorted(set(items["device"].to_pylist()))),
        versions={"python": platform.python_version(), **_versions()},
        committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _embeddings(shard: str, good: pa.Table, config: CommitConfig) -> pa.Table:
    parsed = layout.parse_shard(shard)
    assert parsed is not None
    good = good.append_column("generation", pa.array([parsed[0]] * good.num_rows, pa.int32()))
    vectors = good["embedding"].cast(config.embedding)
    good = good.set_column(good.schema.get_field_index("embedding"), "embedding", vectors)
    # Partition columns live in the folders' names: readers add them from there.
    own = [name for name in config.columns if name not in config.partition_by]
    return good.select([*schema.EMBEDDINGS, *own])


def _put(output: str, name: str, table: pa.Table) -> Stored:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    storage_for(output).write(join(output, name), data)
    return Stored(name=name, rows=table.num_rows, size_bytes=len(data), checksum=digest(data))


def _record(marker: bytes) -> pa.Table:
    return pa.table({"marker": pa.array([marker], pa.binary())})


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            # A cluster runs patchflow from a working directory, not installed.
            continue
    return found
