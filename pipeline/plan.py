"""Planning: candidates that are new or changed become a generation, cut into shards.

Everything streams. What is already planned is looked up in a temporary SQLite file, and rows wait
only until their shard is full, one open shard for every combination of partition values, on disk
where there are many: memory does not grow with the collection.
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from pipeline.config import DEFAULT_SHARD_ROWS, InputConfig
from pipeline.errors import RaceError, UsageError
from pipeline.flags import flag
from pipeline.freeze import ShardWriter, freeze
from pipeline.known import Known, PlanReport
from pipeline.manifest import Generation, generations, reach_of, read_columns
from pipeline.schema import MANIFEST
from pipeline.sources import candidates, reach_of_inputs

_CANDIDATE_NAMES = ("uri", "version", "size_bytes", "media_type")


# Of several planners at once one wins; the others look at what it has planned, and go on.
@retry(retry=retry_if_exception_type(RaceError), stop=stop_after_attempt(5), reraise=True)
def plan_next(
    config: InputConfig, output: str, default_rows: int = DEFAULT_SHARD_ROWS
) -> tuple[PlanReport, list[Generation]]:
    """`plan` on top of what an output has; returns all generations, the new one last."""
    existing = generations(output)
    report, generation = plan(config, output, existing, default_rows)
    return report, [*existing, generation] if generation else existing


def plan(
    config: InputConfig,
    output: str | None,
    existing: list[Generation],
    default_rows: int = DEFAULT_SHARD_ROWS,
) -> tuple[PlanReport, Generation | None]:
    """Compares the inputs with what is planned and freezes the rest as the next generation.

    Args:
        config: Inputs, and how to cut them into shards.
        output: Canonical location of the output; None only counts and writes nothing.
        existing: The output's generations so far, oldest first.
        default_rows: Items a shard where neither `config` nor a generation says.

    Returns:
        The counts, and the new generation: None where nothing is new, or without an output.

    Raises:
        UsageError: An input is wrong or holds nothing to plan, or another layout is asked for
            than the output has.
        RaceError: Another planner has made the next generation meanwhile.
        StorageError: Storage failed. Nothing is planned then.
    """
    report = PlanReport()
    partition_by, shard_rows = _layout(config, existing, default_rows)
    if not config.inputs:
        return report, None
    number = len(existing)
    with (
        tempfile.TemporaryDirectory(prefix="patchflow-plan-") as folder,
        closing(Known(Path(folder) / "known.sqlite", number)) as known,
    ):
        for generation in existing:
            assert output is not None
            for batch in read_columns(output, generation, ["item_id", "version"]):
                known.load(batch)
        writer = ShardWriter(number, shard_rows, partition_by, Path(folder))
        columns: dict[str, str] | None = existing[0].columns if existing else None
        follow_links = config.follow_links or reach_of(existing).follow_links
        reach = replace(reach_of_inputs(config), follow_links=follow_links)
        for table in candidates(config.inputs, reach, report.skipped):
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
        return report, freeze(output, writer, columns, config.inputs, reach)


def _nothing(config: InputConfig, report: PlanReport) -> str:
    others, links = sum(report.skipped.by_suffix.values()), report.skipped.links
    found = [f"{others:,} files of other kinds"] if others else []
    found += [f"{links:,} symbolic links out of it, for --follow-links"] if links else []
    seen = " and ".join(found) or "nothing at all"
    return f"no images or videos in {' '.join(config.inputs)}: found {seen}"


def _layout(
    config: InputConfig, existing: list[Generation], default_rows: int
) -> tuple[tuple[str, ...], int]:
    if not existing:
        return config.partition_by, config.shard_rows or default_rows
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
