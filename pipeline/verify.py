"""The audit: what is stored is held against the invariants, and every breach is listed."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.location import digest, join
from pipeline.manifest import Generation, Shard, committed, read_shard, shards_of
from pipeline.marker import Marker, Stored
from pipeline.status import markers, planned
from pipeline.storage import storage_for


@dataclass
class Audit:
    """What was looked at, and what is wrong."""

    shards: int = 0
    shards_committed: int = 0
    rows: int = 0
    embedded: int = 0
    failed: int = 0
    unfinished: list[str] = field(default_factory=list)
    """Objects of shards that are not committed: overwritten whole when their shard is done."""
    breaches: list[str] = field(default_factory=list)


def verify(output: str) -> Audit:
    """Audits every committed shard of an output.

    Raises:
        UsageError: Nothing is planned there.
        StorageError: Storage failed.
    """
    audit = Audit()
    done = committed(output)
    widths: Counter[str] = Counter()
    known: set[str] = set()
    expected: set[str] = set()
    for generation in planned(output):
        _check_generation(output, generation, audit)
        shards = {shard.id: shard for shard in shards_of(generation, without=set())}
        known |= set(shards)
        audit.shards += len(shards)
        mine = done & set(shards)
        audit.shards_committed += len(mine)
        for shard, marker in markers(output, mine):
            if marker is None:
                audit.breaches.append(f"{shard}: its marker cannot be read, or is another shard's")
                continue
            expected |= {stored.name for stored in marker.objects}
            for breach in _check_shard(output, generation, shards[shard], marker, widths):
                audit.breaches.append(f"{shard}: {breach}")
            audit.rows += marker.rows
            audit.embedded += marker.embedded
            audit.failed += marker.failed
    for foreign in sorted(done - known):
        audit.breaches.append(f"{foreign}: committed, but in no manifest")
    if len(widths) > 1:
        audit.breaches.append(f"embeddings of different types: {dict(widths)}")
    _check_strays(output, expected, done, audit)
    return audit


def _check_generation(output: str, generation: Generation, audit: Audit) -> None:
    """The manifest itself: as many rows as promised, every item once."""
    rows, ids = 0, []
    for shard in shards_of(generation, without=set()):
        table = read_shard(output, shard)
        rows += table.num_rows
        ids.append(table["item_id"].combine_chunks())
        if table.num_rows != shard.rows or pc.unique(table["shard"]).to_pylist() != [shard.id]:
            audit.breaches.append(f"{shard.id}: its manifest rows are not the planned ones")
    distinct = len(pc.unique(pa.chunked_array(ids, pa.string())))
    if not rows == distinct == generation.rows:
        audit.breaches.append(
            f"generation {generation.number}: {rows} manifest rows of {distinct} items, "
            f"{generation.rows} planned"
        )


def _check_shard(
    output: str, generation: Generation, shard: Shard, marker: Marker, widths: Counter[str]
) -> Iterator[str]:
    """One committed shard: objects whole, every item exactly once, vectors of one kind."""
    tables: dict[str, pa.Table] = {}
    for stored in marker.objects:
        data = _read(output, stored)
        if data is None:
            yield f"{stored.name} is missing"
        elif len(data) != stored.size_bytes or digest(data) != stored.checksum:
            yield f"{stored.name} is not what was committed"
        else:
            tables[stored.name.split("/")[0]] = pq.read_table(io.BytesIO(data))
    if set(tables) != {layout.EMBEDDINGS, layout.ERRORS}:
        return
    good, bad = tables[layout.EMBEDDINGS], tables[layout.ERRORS]
    if (good.num_rows, bad.num_rows) != (marker.embedded, marker.failed):
        yield f"{good.num_rows} embeddings and {bad.num_rows} errors, the marker says otherwise"
    planned_items = set(read_shard(output, shard)["item_id"].to_pylist())
    found = Counter(good["item_id"].to_pylist() + bad["item_id"].to_pylist())
    if found != Counter(planned_items):
        missing, foreign = len(planned_items - set(found)), len(set(found) - planned_items)
        twice = sum(count > 1 for count in found.values())
        yield f"{missing} items without a terminal row, {twice} with several, {foreign} unplanned"
    if pc.unique(good["generation"]).to_pylist() not in ([], [generation.number]):
        yield "embeddings of another generation"
    yield from _check_vectors(good, widths)


def _check_vectors(good: pa.Table, widths: Counter[str]) -> Iterator[str]:
    column = good["embedding"]
    widths[str(column.type)] += 1
    values = pc.list_flatten(column)
    if column.null_count or values.null_count:
        yield "null embeddings"
    if not pc.all(pc.is_finite(values.cast(pa.float32()))).as_py() and len(values):
        yield "embeddings that are not finite"


def _read(output: str, stored: Stored) -> bytes | None:
    try:
        return storage_for(output).read(join(output, stored.name))
    except FileNotFoundError:
        return None


def _check_strays(output: str, expected: set[str], done: set[str], audit: Audit) -> None:
    """Objects that no marker names: a breach if their shard is committed, else unfinished."""
    for folder in (layout.EMBEDDINGS, layout.ERRORS):
        try:
            listing = list(storage_for(output).list(join(output, folder)))
        except FileNotFoundError:
            continue
        for info in listing:
            name = info.uri.removeprefix(join(output, ""))
            shard = name.rsplit("/", 1)[1].removesuffix(".parquet")
            if name in expected:
                continue
            if shard in done or layout.parse_shard(shard) is None:
                audit.breaches.append(f"{name}: in no marker")
            else:
                audit.unfinished.append(name)
