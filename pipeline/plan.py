"""Planning: candidates that are new or changed become a generation, cut into shards.

Everything streams. What is already planned is looked up in a temporary SQLite file, so memory
does not grow with the collection; rows wait in memory only until their shard is full, one
open shard for every combination of partition values.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.config import DEFAULT_SHARD_ROWS, InputConfig, flag
from pipeline.errors import UsageError
from pipeline.known import Known, PlanReport
from pipeline.location import join
from pipeline.manifest import SHARDS_A_PART, Generation, read_columns
from pipeline.schema import MANIFEST
from pipeline.sources import candidates
from pipeline.storage import storage_for

_CANDIDATE_NAMES = ("uri", "version", "size_bytes", "media_type")
# What file systems take as one name.
_LONGEST_NAME = 255


def plan(
    config: InputConfig, output: str | None, existing: list[Generation]
) -> tuple[PlanReport, Generation | None]:
    """Compares the inputs with what is planned and freezes the rest as the next generation.

    Args:
        config: Inputs, and how to cut them into shards.
        output: Canonical location of the output; None only counts and writes nothing.
        existing: The output's generations so far, oldest first.

    Returns:
        The counts, and the new generation: None where nothing is new, or without an output.

    Raises:
        UsageError: An input is wrong or holds nothing to plan, or another layout is asked for
            than the output has.
        StorageError: Storage failed. Nothing is planned then.
    """
    report = PlanReport()
    if not config.inputs:
        return report, None
    partition_by, shard_rows = _layout(config, existing)
    number = len(existing)
    with (
        tempfile.TemporaryDirectory(prefix="patchflow-plan-") as folder,
        closing(Known(Path(folder) / "known.sqlite", number)) as known,
    ):
        for generation in existing:
            assert output is not None
            for batch in read_columns(output, generation, ["item_id", "version"]):
                known.load(batch)
        writer = _ShardWriter(number, shard_rows, partition_by, Path(folder))
        columns: dict[str, str] | None = existing[0].columns if existing else None
        for table in candidates(config.inputs, report.skipped):
            columns = _same_columns(columns, table, partition_by)
            ordered = table.select([*_CANDIDATE_NAMES, *columns])
            writer.add(known.fresh(ordered, report, config.limit))
            if report.seen == config.limit:
                break
        writer.close()
        report.shards = writer.shards
        if not existing and not report.planned:
            raise UsageError(_nothing(config, report))
        if output is None or not report.planned:
            return report, None
        assert columns is not None
        return report, _freeze(output, writer, report, columns, config.inputs)


def _nothing(config: InputConfig, report: PlanReport) -> str:
    others = sum(report.skipped.by_suffix.values())
    seen = f"{others:,} files of other kinds" if others else "nothing at all"
    return f"no images or videos in {' '.join(config.inputs)}: found {seen}"


def _layout(config: InputConfig, existing: list[Generation]) -> tuple[tuple[str, ...], int]:
    if not existing:
        return config.partition_by, config.shard_rows or DEFAULT_SHARD_ROWS
    frozen = existing[0]
    check_layout(config, frozen)
    return frozen.partition_by, frozen.shard_rows


def check_layout(config: InputConfig, frozen: Generation) -> None:
    """Refuses another layout than an output has.

    Raises:
        UsageError: Naming the field and both values.
    """
    for name in ("shard_rows", "partition_by"):
        asked, has = getattr(config, name), getattr(frozen, name)
        if asked and asked != has:
            asked, has = (" ".join(v) if isinstance(v, tuple) else v for v in (asked, has))
            raise UsageError(
                f"{flag(name)} {asked}: this output was planned with {has or 'none'}; leave it "
                "out, or choose another --output"
            )


def _same_columns(
    columns: dict[str, str] | None, table: pa.Table, partition_by: tuple[str, ...]
) -> dict[str, str]:
    found = {f.name: str(f.type) for f in table.schema if f.name not in MANIFEST.names}
    if columns is None:
        for name in partition_by:
            _check_partition(name, table.schema, found)
        return found
    if found != columns:
        raise UsageError(
            f"all inputs of an output need the same columns of their own: {columns or 'none'} "
            f"before, {found or 'none'} now"
        )
    return columns


def _check_partition(name: str, schema: pa.Schema, columns: dict[str, str]) -> None:
    if name not in columns:
        has = ", ".join(columns) or "none: only a Parquet manifest brings columns"
        raise UsageError(f"--partition-by {name}: no such column; the input has {has}")
    kind = schema.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise UsageError(f"--partition-by {name}: {kind} cannot name a folder")


class _ShardWriter:
    """Collects rows by partition values and writes full shards as row groups of parts."""

    def __init__(
        self, number: int, shard_rows: int, partition_by: tuple[str, ...], folder: Path
    ) -> None:
        self.number, self.shard_rows, self.partition_by = number, shard_rows, partition_by
        self.parts: list[Path] = []
        self.short_shards: dict[int, int] = {}
        self.shards = 0
        self._folder = folder
        self._open: dict[str, pa.Table] = {}
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `item_id`, a candidate's columns and the caller's."""
        for folder, group in _groups(rows, self.partition_by):
            waiting = self._open.pop(folder, None)
            table = group if waiting is None else pa.concat_tables([waiting, group])
            while table.num_rows >= self.shard_rows:
                self._write(table.slice(0, self.shard_rows))
                table = table.slice(self.shard_rows)
            if table.num_rows:
                self._open[folder] = table

    def close(self) -> None:
        """Writes what waits as short shards, in the order in which their values came."""
        for table in self._open.values():
            self._write(table)
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
        self.shards += 1


def _groups(rows: pa.Table, partition_by: tuple[str, ...]) -> Iterator[tuple[str, pa.Table]]:
    """Rows by the folder that their partition values name: equal folders, equal values."""
    if not partition_by or not rows.num_rows:
        yield "", rows
        return
    members: dict[str, list[int]] = {}
    columns = [rows[name].to_pylist() for name in partition_by]
    for row, values in enumerate(zip(*columns, strict=True)):
        if layout.NULL in values:
            raise UsageError(f"--partition-by: the value {layout.NULL!r} stands for null")
        folder = layout.partition(dict(zip(partition_by, values, strict=True)))
        members.setdefault(folder, []).append(row)
    for folder, indices in members.items():
        for name in folder.split("/"):
            if len(name) > _LONGEST_NAME:
                raise UsageError(f"--partition-by: a value makes too long a name: {name[:80]}...")
        yield folder, rows.take(pa.array(indices, pa.int64()))


def _freeze(
    output: str,
    writer: _ShardWriter,
    report: PlanReport,
    columns: dict[str, str],
    inputs: tuple[str, ...],
) -> Generation:
    token = uuid.uuid4().hex[:12]
    folder = f"{layout.MANIFESTS}/g{writer.number:06d}"
    generation = Generation(
        number=writer.number,
        rows=report.planned,
        size_bytes=report.size_bytes,
        shards=writer.shards,
        shard_rows=writer.shard_rows,
        short_shards=writer.short_shards,
        partition_by=writer.partition_by,
        columns=columns,
        parts=tuple(f"{folder}/{token}-{part.name}" for part in writer.parts),
        inputs=inputs,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage = storage_for(output)
    for name, part in zip(generation.parts, writer.parts, strict=True):
        storage.upload(join(output, name), str(part))
    if not storage.create(join(output, layout.generation(writer.number)), generation.to_json()):
        raise UsageError(
            f"{output}: another run planned generation {writer.number} at the same time; "
            "run the same command again"
        )
    return generation
