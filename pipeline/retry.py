"""Retrying: the items that are failed now become a generation, which is embedded like any other."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tenacity import retry as attempt
from tenacity import retry_if_exception_type, stop_after_attempt

from pipeline.ahead import ahead
from pipeline.cluster import choose_device
from pipeline.config import RetryConfig
from pipeline.embed import embed_open
from pipeline.errors import RaceError, StorageError
from pipeline.freeze import ShardWriter, freeze
from pipeline.identity import Identity
from pipeline.location import item_id, join
from pipeline.manifest import Generation, Shard, reach_of, read_shard
from pipeline.objects import ObjectInfo
from pipeline.record import check_resumable, recorded
from pipeline.schema import MANIFEST
from pipeline.states import failures, newest_of
from pipeline.status import marked, planned
from pipeline.storage import output_root, storage_for
from pipeline.summary import Summary


@dataclass
class RetryReport:
    """What is tried again."""

    errors: Counter[str] = field(default_factory=Counter)
    """Items by the code that they failed with."""
    changed: int = 0
    """Those whose object has another version now than when they were planned."""
    shards: int = 0


def retry(config: RetryConfig, *, on_plan: Callable[[RetryReport], None]) -> Summary | None:
    """Embeds failed items again, and whatever else is open, with the output's configuration.

    Args:
        config: Which ones, and the options that may change from run to run.
        on_plan: Is told what is tried again, before the work begins.

    Returns:
        None where nothing was ever embedded, so that nothing can have failed.

    Raises:
        UsageError: The command cannot work as typed; nothing is changed.
        PatchflowError: The run failed or was stopped; it can be resumed.
    """
    output = output_root(config.output)
    planned(output)
    run = recorded(output)
    if run is None:
        on_plan(RetryReport())
        return None
    recipe = run.embed_config(config, output)

    def prepare() -> tuple[Identity, list[Generation]]:
        what = run.identity(recipe, choose_device(config))
        check_resumable(output, what.semantics)
        report, existing = plan_retry(output, config.code, follow_links=config.follow_links)
        on_plan(report)
        return what, existing

    return embed_open(recipe, prepare)


# Of several planners at once one wins; the others look at what it has planned, and go on.
@attempt(retry=retry_if_exception_type(RaceError), stop=stop_after_attempt(5), reraise=True)
def plan_retry(
    output: str, codes: tuple[str, ...] = (), *, follow_links: bool = False
) -> tuple[RetryReport, list[Generation]]:
    """Freezes the items that are failed now as the next generation.

    An item that was planned with a version is planned with the one that its object has now, so
    that a changed object is embedded as it is; where there is none, with its old one.

    Args:
        output: Canonical location of the output.
        codes: Only items that failed with one of them; empty takes all.
        follow_links: Whether symbolic links may lead out of the inputs from now on.

    Returns:
        What is in the new generation, and all generations, the new one last, if there is one.

    Raises:
        UsageError: Nothing is planned there.
        StorageError: Storage failed, or the output is damaged. Nothing is planned then.
    """
    existing, report = planned(output), RetryReport()
    first = existing[0]
    with (
        tempfile.TemporaryDirectory(prefix="patchflow-retry-") as folder,
        newest_of(output, existing) as newest,
    ):
        writer = ShardWriter(len(existing), first.shard_rows, first.partition_by, Path(folder))
        failed = (
            (shard, marker)
            for shard, marker in marked(output, existing)
            if marker is not None and any(not codes or code in codes for code in marker.errors)
        )
        for shard, rows in failures(output, failed, newest):
            pairs = zip(rows["item_id"].to_pylist(), rows["error_code"].to_pylist(), strict=True)
            wanted = {key: code for key, code in pairs if not codes or code in codes}
            if wanted:
                writer.add(_looked_at(_planned_rows(output, shard, set(wanted)), report))
                report.errors.update(wanted.values())
        writer.close()
        report.shards = writer.shards
        if writer.rows:
            reach = reach_of(existing, follow_links=follow_links)
            existing = [*existing, freeze(output, writer, first.columns, (), reach)]
    return report, existing


def _planned_rows(output: str, shard: Shard, ids: set[str]) -> pa.Table:
    """Some of a shard's manifest rows, without the shard's name."""
    rows = read_shard(output, shard).drop_columns("shard")
    rows = rows.filter(pc.is_in(rows["item_id"], pa.array(ids, pa.string())))
    if sorted(ids) != sorted(map(item_id, rows["uri"].to_pylist())):
        raise StorageError(f"{join(output, shard.part)} is damaged; `verify` tells more")
    return rows


def _looked_at(items: pa.Table, report: RetryReport) -> pa.Table:
    """Manifest rows, with the version and size that their objects have now."""
    names = ("uri", "version", "size_bytes")

    def look(row: tuple[str, str | None, int | None]) -> tuple[str | None, int | None]:
        uri, version, size_bytes = row
        found = _stat(uri) if version is not None else None
        return (found.version, found.size_bytes) if found else (version, size_bytes)

    rows = zip(*(items[name].to_pylist() for name in names), strict=True)
    versions, sizes = zip(*ahead(look, rows), strict=True)
    old = items["version"].to_pylist()
    report.changed += sum(new != before for new, before in zip(versions, old, strict=True))
    for name, values in (("version", versions), ("size_bytes", sizes)):
        field = MANIFEST.field(name)
        column = pa.array(values, field.type)
        items = items.set_column(items.schema.get_field_index(name), field, column)
    return items


def _stat(uri: str) -> ObjectInfo | None:
    try:
        return storage_for(uri).stat(uri)
    except StorageError:
        if storage_for(uri).answers(uri):
            return None  # True of this object alone, which then fails again.
        raise
