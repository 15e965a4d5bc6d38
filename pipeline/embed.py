"""One run: plan what is new, embed what is not committed, and add up what came of it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace

from pipeline.cluster import choose_device, ray_running
from pipeline.commit import recover
from pipeline.config import EmbedConfig, slice_of
from pipeline.errors import StorageError, UsageError
from pipeline.head_start import in_cluster
from pipeline.identity import Identity, identity
from pipeline.known import PlanReport
from pipeline.manifest import Generation, Shard, committed, generations, shards_of
from pipeline.plan import check_layout, plan_next
from pipeline.record import check_resumable, record, recorded
from pipeline.shard_size import check_shard_size, default_shard_rows
from pipeline.storage import output_root, storage_for
from pipeline.summary import Summary
from pipeline.tower import mend


def embed(config: EmbedConfig, *, on_plan: Callable[[PlanReport], None]) -> Summary:
    """Runs `config` to its end.

    Args:
        config: What to embed, and how.
        on_plan: Is told what the inputs came to, before the work begins.

    Raises:
        UsageError: The command cannot work as typed; nothing is changed.
        PatchflowError: The run failed or was stopped; it can be resumed.
    """
    output = output_root(config.output)
    run = recorded(output)
    limits = config.limits(None if run is None else run.limits)
    config = replace(config, output=output, **asdict(limits))
    if run is not None and config.dtype == "auto":
        config = replace(config, dtype=run.semantics["compute_dtype"])

    def prepare() -> tuple[Identity, list[Generation]]:
        begun_with = None if run is None else run.encoder
        what = identity(config, choose_device(config), begun_with)
        begun = check_resumable(config.output, what.semantics)
        existing, default = generations(config.output), default_shard_rows(what)
        check_shard_size(existing[0].shard_rows if existing else config.shard_rows or default, what)
        report, planned = _plan(config, default)
        check_shard_size(planned[0].shard_rows, what)  # Another driver may have planned it.
        on_plan(report)
        if not begun:
            record(config, what)
        return what, planned

    return embed_open(config, prepare)


def embed_open(
    config: EmbedConfig, prepare: Callable[[], tuple[Identity, list[Generation]]]
) -> Summary:
    """Embeds what is planned and not committed.

    Args:
        config: Its output is canonical; its inputs are planned already.
        prepare: Says with what to embed, and what is planned. Where there is a cluster to join, it
            is joined before.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        if in_cluster():
            stack.enter_context(ray_running(verbose=config.verbose, insecure=config.insecure_ray))
        begun = recorded(config.output) is not None
        what, planned = prepare()
        scope = f"what is planned of shards {config.shards}" if config.shards else "every item"
        summary = Summary(output=config.output, run=_run_name(), encoder=what.encoder, scope=scope)
        shards = _open_shards(config, planned)
        if shards:
            if begun:
                mend(config.output, what.encoder)
            if not in_cluster():
                stack.enter_context(ray_running(verbose=config.verbose, device=what.device))
            from pipeline.drive import drive  # noqa: PLC0415 (nothing to do needs no Ray)

            drive(config, what, shards, planned, summary)
    summary.seconds = time.monotonic() - started
    return summary


def _plan(config: EmbedConfig, default_rows: int) -> tuple[PlanReport, list[Generation]]:
    """Plans what is new, unless this driver was given a slice of what is planned."""
    if config.shards is not None and (existing := generations(config.output)):
        check_layout(config, existing[0])
        return PlanReport(), existing
    report, planned = plan_next(config, config.output, default_rows)
    if not planned:
        raise UsageError(f"{config.output} holds no plan yet: name an INPUT")
    return report, planned


def _run_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _open_shards(config: EmbedConfig, planned: list[Generation]) -> list[Shard]:
    done = committed(config.output)
    # Not every store lets everyone see what is left; no run fails over it.
    with suppress(StorageError):
        storage_for(config.output).clean(config.output)
    done |= recover(config.output, done)
    start, stop = slice_of(config.shards)
    most = max(generation.shards for generation in planned)
    if start >= most:
        raise UsageError(f"--shards {config.shards}: {config.output} has shards 0:{most} only")
    return [
        shard
        for generation in planned
        for shard in shards_of(generation, without=done, start=start, stop=stop)
    ]
