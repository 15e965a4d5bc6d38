"""The last stage: one block in, one shard committed; by whomever, and however often.

A shard may be committed by several writers at once: a task that the engine repeats, a second
driver, a worker whose machine was thought dead and which wakes up an hour later. No storage
changes two objects at once or tells a writer that it is late, so this is the protocol:

1. A shard that has a marker is done; nothing is written.
2. Create the *intent*: one object that holds every byte of the shard. Creation is exclusive, so
   one writer decides what the shard is; all others take what it decided and drop their own.
3. Look for the marker once more. If it is there, the intent is a late writer's, made after the
   deciding one was deleted; it is never published.
4. Write the objects out of the intent, whole, over whatever is there.
5. Create the marker, which names them with their checksums.
6. Delete the intent.

Why each order matters. 2 before 4: whoever writes an object, however late, writes the decided
bytes, so no object ever differs from its marker. 4 before 5: a marker promises what is already
there. 5 before 6: while a shard has no marker its intent stays, so nobody can decide again. 2
before 3: an intent that was created after 6 was created after 5, so its maker finds the marker.
A crash between any two steps leaves an open shard, which is simply done again, or an intent
beside a marker, which `recover` deletes; it also finishes what was decided and left open.
"""

from __future__ import annotations

import io
import platform
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout, schema
from pipeline.config import Level
from pipeline.errors import InternalError, StorageError
from pipeline.location import DIGEST_BYTES, digest, join
from pipeline.marker import Marker, Stored
from pipeline.rungs import RUNGS
from pipeline.segments import segment_table, to_parquet
from pipeline.storage import storage_for

# What a shard's bits may depend on, recorded in its marker.
_LIBRARIES = ("patchflow", "torch", "pillow", "simplejpeg", "av", "numpy", "pyarrow", "ray")
# An intent can vanish between its creation and its reading, at most as often as it is deleted.
_ROUNDS = 10
# More of a shard's items that could not be read than this are no accident of theirs.
_UNREADABLE_SHARE, _UNREADABLE_ITEMS = 0.01, 10


@dataclass(frozen=True, kw_only=True)
class CommitConfig:
    """What the stage needs to know.

    `columns` are the caller's own, `level` says whether segments have rows too, `embedding` is the
    vectors' fixed_size_list type, `rows` the items of each shard of this run, by id. `run` and
    `fingerprint` go into the markers.
    """

    output: str
    run: str
    fingerprint: str
    partition_by: tuple[str, ...]
    columns: tuple[str, ...]
    level: Level
    embedding: pa.DataType
    rows: dict[str, int]


def commit_shard(block: pa.Table, config: CommitConfig) -> bytes:
    """Commits a shard; one that has a marker is left as it is.

    Args:
        block: One shard's `schema.encoded` rows, in the manifest's order.
        config: Where to, and what is expected.

    Returns:
        The shard's marker as JSON, whoever decided it.

    Raises:
        InternalError: The block is not exactly one shard; nothing is written.
        StorageError: Storage failed; the shard stays open.
    """
    shard = _check(block, config)
    intent: bytes | None = None
    for _ in range(_ROUNDS):
        marker = _read(config.output, layout.marker(shard))
        if marker is None:
            if intent is None:
                intent = _intent(shard, block, config)
            place = join(config.output, layout.intent(shard))
            mine = storage_for(config.output).create(place, intent)
            marker = _finish(config.output, shard, intent if mine else None)
        if marker is not None:
            return marker
    raise StorageError(f"{config.output}: {shard} is decided and undone over and over")


def recover(output: str, done: set[str]) -> set[str]:
    """Finishes what was decided and left open, and deletes the intents of `done` shards.

    Returns:
        The shards that this has committed.
    """
    try:
        listing = list(storage_for(output).list(join(output, layout.INTENTS)))
    except FileNotFoundError:
        return set()
    names = {info.uri.rsplit("/", 1)[1].removesuffix(layout.INTENT_SUFFIX) for info in listing}
    found = {name for name in names if layout.parse_shard(name)}
    return {shard for shard in sorted(found) if _finish(output, shard)} - done


def _finish(output: str, shard: str, intent: bytes | None = None) -> bytes | None:
    """Steps 3 to 6; None where the intent is gone: whoever deleted it has finished."""
    storage = storage_for(output)
    intent = intent or _read(output, layout.intent(shard))
    if intent is None:
        return None
    objects = _unpack(intent, join(output, layout.intent(shard)))
    marker = _read(output, layout.marker(shard))
    if marker is None:
        place, marker = objects.popitem()
        for name, data in objects.items():
            storage.write(join(output, name), data)
        storage.create(join(output, place), marker)
    storage.delete(join(output, layout.intent(shard)))
    return marker


def _read(output: str, name: str) -> bytes | None:
    try:
        return storage_for(output).read(join(output, name))
    except FileNotFoundError:
        return None


def _intent(shard: str, items: pa.Table, config: CommitConfig) -> bytes:
    """Everything that a shard is, in the order in which it is published: the marker last."""
    failed = pc.is_valid(items["error_code"])
    # Filtering copies: what may be large is left to `segment_table`.
    light = items.select([n for n in items.column_names if n not in schema.SEGMENT_RESULTS])
    good, bad = light.filter(pc.invert(failed)), light.filter(failed)
    values = {name: items[name][0].as_py() for name in config.partition_by}
    embeddings, errors, *segments = layout.objects(shard, values, config.level)
    tables = {
        embeddings: _embeddings(shard, good, config),
        errors: bad.select(schema.ERRORS.names),
    }
    objects = {name: _parquet(table) for name, table in tables.items()}
    for name in segments:
        tables[name] = segment_table(items, config.embedding, config.level)
        objects[name] = to_parquet(tables[name])
    marker = Marker(
        shard=shard,
        run=config.run,
        fingerprint=config.fingerprint,
        partition={n: None if value is None else str(value) for n, value in values.items()},
        rows=items.num_rows,
        embedded=good.num_rows,
        failed=bad.num_rows,
        errors=dict(sorted(Counter(bad["error_code"].to_pylist()).items())),
        tokens=pc.sum(good["num_tokens"]).as_py() or 0,
        objects=[_stored(name, tables[name].num_rows, data) for name, data in objects.items()],
        device=", ".join(sorted(set(items["device"].to_pylist()))),
        versions={"python": platform.python_version(), **_versions()},
        committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        kernels=_kernels(items),
    )
    return _pack(objects | {layout.marker(shard): marker.to_json()})


def _kernels(items: pa.Table) -> str:
    """The ways in which GPUs computed a shard; empty where that was the usual one alone."""
    used = {name for name in pc.unique(items["device_kernels"]).to_pylist() if name is not None}
    return ", ".join(sorted(used)) if used - {str(RUNGS["cuda"][0])} else ""


def _pack(objects: dict[str, bytes]) -> bytes:
    """An Arrow stream of names and contents, led by the digest of the rest."""
    table = pa.table(
        {
            "name": pa.array(objects.keys(), pa.string()),
            "data": pa.array(objects.values(), pa.large_binary()),
        }
    )
    sink = io.BytesIO()  # Gibibytes, perhaps: nothing here copies them once more.
    sink.write(bytes(2 * DIGEST_BYTES))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    checksum = digest(sink.getbuffer()[2 * DIGEST_BYTES :])
    sink.seek(0)
    sink.write(checksum.encode())
    return sink.getvalue()


def _unpack(intent: bytes, place: str) -> dict[str, bytes]:
    """The inverse of `_pack`, in the same order.

    Raises:
        StorageError: It is damaged.
    """
    data = memoryview(intent)[2 * DIGEST_BYTES :]
    if digest(data).encode() != intent[: 2 * DIGEST_BYTES]:
        raise StorageError(f"{place} is damaged; delete it and run the same command again")
    table = pa.ipc.open_stream(data).read_all()
    return dict(zip(table["name"].to_pylist(), table["data"].to_pylist(), strict=True))


def _check(block: pa.Table, config: CommitConfig) -> str:
    shards: list[str] = pc.unique(block["shard"]).to_pylist()
    if len(shards) != 1 or shards[0] not in config.rows:
        raise InternalError(
            f"a block of {block.num_rows} rows of shards {shards[:4]} is not one of this run's "
            "shards"
        )
    expected = config.rows[shards[0]]
    distinct = pc.count_distinct(block["item_id"]).as_py()
    if not block.num_rows == distinct == expected:
        raise InternalError(
            f"{shards[0]} holds {block.num_rows} rows of {distinct} items; it has {expected}"
        )
    for name in config.partition_by:
        values = pc.unique(block[name]).to_pylist()
        if len(values) != 1:
            raise InternalError(f"{shards[0]} has several values of {name}: {values[:4]}")
    _check_readable(shards[0], block)
    return shards[0]


def _check_readable(shard: str, items: pa.Table) -> None:
    unread = items.filter(pc.equal(items["error_code"], "read_failed"))
    if unread.num_rows > max(_UNREADABLE_ITEMS, _UNREADABLE_SHARE * items.num_rows):
        raise StorageError(
            f"{unread.num_rows:,} of {items.num_rows:,} items of {shard} could not be read: "
            f"{unread['error_message'][0]}; run the same command again once they can, or remove "
            "those that never will be: then they are not_found"
        )


def _embeddings(shard: str, good: pa.Table, config: CommitConfig) -> pa.Table:
    number = layout.generation_of(shard)
    good = good.append_column("generation", pa.array([number] * good.num_rows, pa.int32()))
    vectors = good["embedding"].cast(config.embedding)
    good = good.set_column(good.schema.get_field_index("embedding"), "embedding", vectors)
    # Partition columns live in the folders' names: readers add them from there.
    own = [name for name in config.columns if name not in config.partition_by]
    return good.select([*schema.EMBEDDINGS, *own])


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _stored(name: str, rows: int, data: bytes) -> Stored:
    return Stored(name=name, rows=rows, size_bytes=len(data), checksum=digest(data))


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            # A cluster runs patchflow from a working directory, not installed.
            continue
    return found
