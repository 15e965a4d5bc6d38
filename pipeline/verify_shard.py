"""The audit of one shard: its marker and objects, against its manifest rows and `run.json`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout, schema
from pipeline.config import Level
from pipeline.errors import StorageError
from pipeline.location import digest, join
from pipeline.manifest import Shard
from pipeline.marker import Marker, Stored
from pipeline.record import Recorded
from pipeline.storage import storage_for
from pipeline.verify_segments import check_finite, check_segments
from processors import ErrorCode

# What an item's row says as its manifest row does, beside the caller's columns.
_CARRIED = ("uri", "version", "media_type")


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """What the manifest decides of a shard."""

    shard: Shard
    rows: pa.Table
    partition_by: tuple[str, ...]
    level: Level

    @property
    def partition(self) -> dict[str, object]:
        """Its partition values."""
        return {name: self.rows[name][0].as_py() for name in self.partition_by}

    @property
    def objects(self) -> list[str]:
        """The names of its objects: embeddings, errors and, if it has them, segments."""
        return layout.objects(self.shard.id, self.partition, self.level)

    @property
    def own(self) -> list[pa.Field]:
        """The caller's columns that lie in its objects, not in a folder's name."""
        known = {*schema.MANIFEST.names, *self.partition_by}
        return [field for field in self.rows.schema if field.name not in known]


@dataclass(frozen=True)
class Tables:
    """A committed shard's tables; `segments` is None where its level has none."""

    good: pa.Table
    bad: pa.Table
    segments: pa.Table | None = None


def read_tables(output: str, marker: Marker, breaches: list[str]) -> dict[str, pa.Table]:
    """The objects that a marker names, by name; those that are not what it says are `breaches`."""
    tables = {}
    for stored in marker.objects:
        data = _read(output, stored)
        if data is None:
            breaches.append(f"{stored.name} is missing")
        elif len(data) != stored.size_bytes or digest(data) != stored.checksum:
            breaches.append(f"{stored.name} is not what was committed")
        else:
            try:
                table = pq.read_table(io.BytesIO(data))
                schema.check_plain(table.schema, stored.name)
                tables[stored.name] = table
            except StorageError as error:
                breaches.append(str(error))
            except (pa.ArrowException, OSError) as error:
                breaches.append(f"{stored.name} is no Parquet file: {str(error).splitlines()[0]}")
    return tables


def check_marker(planned: PlannedShard, marker: Marker) -> Iterator[str]:
    """Whether the marker is of this shard's objects, as the manifest names them."""
    names = [stored.name for stored in marker.objects]
    if names != planned.objects:
        yield (
            f"its marker names {' and '.join(names) or 'nothing'}, where the manifest has "
            f"{' and '.join(planned.objects)}"
        )
    values = {n: None if v is None else str(v) for n, v in planned.partition.items()}
    if marker.partition != values:
        yield f"its marker has the partition {marker.partition}, the manifest {values}"


def check_tables(
    planned: PlannedShard, marker: Marker, tables: Tables, run: Recorded | None
) -> Iterator[str]:
    """Whether every item has its one row, and every row is of its item."""
    good, bad = tables.good, tables.bad
    wrong = [*_check_columns(planned, tables, run)]
    yield from wrong
    if wrong:
        return
    yield from _check_counts(planned, marker, tables)
    ids = planned.rows["item_id"].to_pylist()
    found = Counter(good["item_id"].to_pylist() + bad["item_id"].to_pylist())
    if found != Counter(set(ids)):
        missing, foreign = len(set(ids) - set(found)), len(set(found) - set(ids))
        twice = sum(count > 1 for count in found.values())
        yield f"{missing} items without a terminal row, {twice} with several, {foreign} unplanned"
    else:
        yield from _check_carried(planned, tables)
    if pc.unique(good["generation"]).to_pylist() not in ([], [planned.shard.generation]):
        yield "embeddings of another generation"
    yield from check_finite(good["embedding"], "embeddings")
    if run is not None:
        patches_a_token = run.encoder.config.spatial_merge_size**2
        unsound = [*_check_grids(good, patches_a_token)]
        yield from unsound
        if tables.segments is not None and not unsound:
            yield from check_segments(good, tables.segments, patches_a_token)


def _read(output: str, stored: Stored) -> bytes | None:
    try:
        return storage_for(output).read(join(output, stored.name))
    except FileNotFoundError:
        return None


def _check_columns(planned: PlannedShard, tables: Tables, run: Recorded | None) -> Iterator[str]:
    stored = tables.good.schema
    if run is not None:
        width, dtype = run.encoder.config.out_hidden_size, run.semantics["output_dtype"]
        vector = schema.embedding_type(width, dtype)
    else:
        known = "embedding" in stored.names
        vector = stored.field("embedding").type if known else schema.embedding_type(0, "float32")
    pairs = [(stored, schema.embeddings(vector, planned.own)), (tables.bad.schema, schema.ERRORS)]
    if tables.segments is not None:
        pairs.append((tables.segments.schema, schema.segments(vector, planned.level)))
    for name, (found, expected) in zip(planned.objects, pairs, strict=True):
        differ = [
            *(f"no column {f.name}" for f in expected if f.name not in found.names),
            *(f"a column {f.name} too many" for f in found if f.name not in expected.names),
            *(
                f"{f.name} is {found.field(f.name).type}, not {f.type}"
                for f in expected
                if f.name in found.names and found.field(f.name).type != f.type
            ),
        ]
        if differ:
            yield f"{name}: {'; '.join(differ)}"


def _check_counts(planned: PlannedShard, marker: Marker, tables: Tables) -> Iterator[str]:
    good, bad, segments = tables.good, tables.bad, tables.segments
    counts = [good.num_rows, bad.num_rows]
    rows = counts if segments is None else [*counts, segments.num_rows]
    if counts != [marker.embedded, marker.failed] or marker.rows != planned.shard.rows:
        yield f"{counts[0]} embeddings and {counts[1]} errors, the marker says otherwise"
    elif [stored.rows for stored in marker.objects] != rows:
        yield "its marker has other numbers of rows than its objects"
    codes = Counter(bad["error_code"].to_pylist())
    if dict(codes) != marker.errors:
        yield f"errors {dict(codes)}, the marker says {marker.errors}"
    if unknown := set(codes) - {*get_args(ErrorCode)}:
        yield f"error codes that there are none of: {sorted(map(str, unknown))}"
    if (pc.sum(good["num_tokens"]).as_py() or 0) != marker.tokens:
        yield "its marker has another number of tokens than its embeddings"


def _check_carried(planned: PlannedShard, tables: Tables) -> Iterator[str]:
    """Each row has its manifest row's values; without a version there, the one that was read."""
    position = {key: row for row, key in enumerate(planned.rows["item_id"].to_pylist())}
    own = [field.name for field in planned.own]
    embeddings, errors, *_ = planned.objects
    for name, found, columns in (
        (embeddings, tables.good, (*_CARRIED, *own)),
        (errors, tables.bad, _CARRIED),
    ):
        order = pa.array([position[key] for key in found["item_id"].to_pylist()], pa.int64())
        expected = planned.rows.take(order)
        for column in columns:
            ours, theirs = found[column], expected[column]
            if column == "version":
                theirs = pc.coalesce(theirs, ours)
            if wrong := _differences(ours, theirs):
                yield f"{name}: {wrong} rows with another {column} than in the manifest"
    for column in ("content_hash", "width", "height"):
        if tables.good[column].null_count:
            yield f"{embeddings}: {column} is null"


def _differences(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> int:
    if ours.equals(theirs):
        return 0
    # What is not a number does not equal itself; its text does.
    pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
    return sum(repr(left) != repr(right) for left, right in pairs)


def _check_grids(good: pa.Table, patches_a_token: int) -> Iterator[str]:
    grids, tokens = good["grid_thw"], good["num_tokens"]
    if grids.null_count or tokens.null_count or pc.list_flatten(grids).null_count:
        yield "null grids or token counts"
        return
    patches = pc.list_flatten(grids).to_numpy().astype(np.int64).reshape(-1, 3)
    counts = tokens.to_numpy().astype(np.int64) * patches_a_token
    if (patches <= 0).any() or (patches.prod(axis=1) != counts).any():
        yield "token counts that are not those of their grids"
