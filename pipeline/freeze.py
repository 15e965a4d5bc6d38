"""Freezing: rows, cut into shards, become the next generation of an output.

The parts are uploaded first and the generation's own object is created last, exclusively: of
two planners at once one wins, and the other's parts are named by nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.errors import RaceError, UsageError, shown
from pipeline.location import file_digest, join
from pipeline.manifest import SHARDS_A_PART, Generation
from pipeline.reach import Reach
from pipeline.schema import MANIFEST
from pipeline.storage import storage_for
from pipeline.waiting import Waiting

# A shard waits for each one until it is full, and each shard's objects have a folder.
MOST_FOLDERS = 10_000


class ShardWriter:
    """Collects rows by partition values and writes full shards as row groups of parts."""

    def __init__(
        self, number: int, shard_rows: int, partition_by: tuple[str, ...], folder: Path
    ) -> None:
        self.number, self.shard_rows, self.partition_by = number, shard_rows, partition_by
        self.parts: list[Path] = []
        self.short_shards: dict[int, int] = {}
        self.shards = self.rows = self.size_bytes = 0
        self._folder = folder
        self._waiting = Waiting(folder)
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `item_id`, a candidate's columns and the caller's.

        Raises:
            UsageError: The partition values make too many folders.
        """
        for folder, group in _groups(rows, self.partition_by):
            if group.num_rows:
                self._waiting.add(folder, group)
            if self._waiting.rows[folder] >= self.shard_rows:
                table = self._waiting.take(folder)
                while table.num_rows >= self.shard_rows:
                    self._write(table.slice(0, self.shard_rows))
                    table = table.slice(self.shard_rows)
                if table.num_rows:
                    self._waiting.add(folder, table)
            if len(self._waiting.rows) > MOST_FOLDERS:
                raise UsageError(
                    f"--partition-by {' '.join(self.partition_by)} makes more than "
                    f"{MOST_FOLDERS:,} folders: choose columns of fewer values"
                )

    def close(self) -> None:
        """Writes what waits as short shards, in the order in which their values came."""
        for folder in list(self._waiting.rows):
            self._write(self._waiting.take(folder))
        if self._writer is not None:
            self._writer.close()

    def _write(self, rows: pa.Table) -> None:
        if rows.num_rows < self.shard_rows:
            self.short_shards[self.shards] = rows.num_rows
        name = layout.shard(self.number, self.shards)
        shard = pa.array([name] * rows.num_rows, pa.string())
        rows = rows.append_column("shard", shard)
        own = [n for n in rows.column_names if n not in MANIFEST.names]
        rows = rows.select([*MANIFEST.names, *own]).combine_chunks()
        if self.shards % SHARDS_A_PART == 0:
            if self._writer is not None:
                self._writer.close()
            self.parts.append(self._folder / f"{len(self.parts):06d}.parquet")
            self._writer = pq.ParquetWriter(self.parts[-1], rows.schema, compression="zstd")
        assert self._writer is not None
        self._writer.write_table(rows, row_group_size=self.shard_rows)
        self.rows += rows.num_rows
        self.size_bytes += pc.sum(rows["size_bytes"]).as_py() or 0
        self.shards += 1


def _groups(rows: pa.Table, partition_by: tuple[str, ...]) -> Iterator[tuple[str, pa.Table]]:
    """Rows by the folder that their partition values name: equal folders, equal values."""
    if not partition_by or not rows.num_rows:
        yield "", rows
        return
    members: dict[str, list[int]] = {}
    columns = [_values(rows, name) for name in partition_by]
    for row, values in enumerate(zip(*columns, strict=True)):
        folder = layout.partition(dict(zip(partition_by, values, strict=True)))
        members.setdefault(folder, []).append(row)
    for folder, indices in members.items():
        yield folder, rows.take(pa.array(indices, pa.int64()))


def _values(rows: pa.Table, name: str) -> list[object]:
    try:
        return list(rows[name].to_pylist())
    except (ValueError, OverflowError):
        # A time of no calendar, or in a zone that nobody knows.
        kind = shown(str(rows.schema.field(name).type))[1:-1]
        raise UsageError(
            f"--partition-by {name}: a value of that column, {kind}, has no name; make it a string"
        ) from None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file)


def freeze(
    output: str,
    writer: ShardWriter,
    columns: dict[str, str],
    inputs: tuple[str, ...],
    reach: Reach,
) -> Generation:
    """Publishes what `writer` has cut as the output's next generation.

    Raises:
        RaceError: Another planner has made this generation meanwhile.
        StorageError: Storage failed. Nothing is planned then.
    """
    token = uuid.uuid4().hex[:12]
    folder = f"{layout.MANIFESTS}/g{writer.number:06d}"
    generation = Generation(
        number=writer.number,
        rows=writer.rows,
        size_bytes=writer.size_bytes,
        shards=writer.shards,
        shard_rows=writer.shard_rows,
        short_shards=writer.short_shards,
        partition_by=writer.partition_by,
        columns=columns,
        parts=tuple(f"{folder}/{token}-{p.stem}-{_checksum(p)}.parquet" for p in writer.parts),
        inputs=inputs,
        roots=reach.roots,
        follow_links=reach.follow_links,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage, place = storage_for(output), join(output, layout.generation(writer.number))
    for name, part in zip(generation.parts, writer.parts, strict=True):
        storage.upload(join(output, name), str(part))
    # A request whose answer was lost is sent again, and then meets what it has made itself.
    if not storage.create(place, generation.to_json()) and (
        storage.read(place) != generation.to_json()
    ):
        raise RaceError(f"{output}: other runs plan at the same time; run the same command again")
    return generation
