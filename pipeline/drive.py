"""The driver of one run: actors sized, shards sent, markers counted, failures told in a line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import build, layout, schema
from pipeline.brake import Brake, ErrorRate, Machines
from pipeline.budgets import claims
from pipeline.call_sizes import expected_rows
from pipeline.commit import CommitConfig
from pipeline.config import ComputeDevice, EmbedConfig
from pipeline.encode import EncodeConfig
from pipeline.errors import (
    InternalError,
    LostError,
    PatchflowError,
    ResizedError,
    StorageError,
)
from pipeline.gpu_demand import GpuDemand
from pipeline.gpus import warn
from pipeline.head_start import in_cluster
from pipeline.identity import Identity, fingerprint
from pipeline.idle_cpus import Sharing
from pipeline.location import join
from pipeline.manifest import Generation, Shard, committed, reach_of
from pipeline.notes import Notes
from pipeline.preprocess import PreprocessConfig
from pipeline.progress import Counts
from pipeline.progress_line import ProgressLine
from pipeline.remarks import Remarks
from pipeline.status import markers
from pipeline.storage import storage_for
from pipeline.summary import Summary
from pipeline.workers import plan_workers

_TOKEN_BUDGETS: dict[ComputeDevice, int] = {"cpu": 1024, "cuda": 16384}


def drive(
    config: EmbedConfig,
    what: Identity,
    shards: list[Shard],
    planned: list[Generation],
    summary: Summary,
) -> None:
    """Embeds `shards` of what is planned on the running Ray; adds what came of it to `summary`.

    Raises:
        ErrorRateError: `--max-error-rate` was passed.
        PatchflowError: The run failed; what is committed stays.
    """
    left = {shard.id: shard for shard in shards}
    while left:
        before = len(left)
        try:
            _pass(config, what, planned, left, summary)
        except (ResizedError, LostError) as error:
            print(f"patchflow: {error}", file=sys.stderr)
            # What was committed without the driver's having heard of it.
            for shard, found in markers(config.output, committed(config.output) & set(left)):
                if found is not None:
                    summary.add(found)
                    del left[shard]
            if isinstance(error, LostError) and len(left) == before:
                raise  # What is lost over and over is no accident.
    ErrorRate(config.max_error_rate, Counts()).check(summary.items, summary.errors)


def _pass(
    config: EmbedConfig,
    what: Identity,
    planned: list[Generation],
    left: dict[str, Shard],
    summary: Summary,
) -> None:
    """One pipeline over what is `left`, laid out for the machines that are there now."""
    shards, frozen = list(left.values()), planned[0]
    reach = reach_of(planned, follow_links=config.follow_links)
    preprocess = PreprocessConfig(limits=config.limits(), options=what.processors, reach=reach)
    budget = config.token_budget or _TOKEN_BUDGETS[what.device]
    encode = EncodeConfig.of(config, what, budget)
    claimed = claims(preprocess, encode, what.encoder.config)
    workers = plan_workers(config, what.device, claimed)
    if workers.waiting:
        others = "wait for more GPUs" if in_cluster() else "are not started"
        warn(
            f"GPUs have room for {workers.encode} of {config.encoder_actors} encoder actors; the "
            f"others {others}; a smaller --gpus-per-encoder lets several share one"
        )
    preprocess = replace(
        preprocess, decoders=workers.decoders_an_actor, block_bytes=workers.block_bytes
    )
    items = sum(shard.rows for shard in shards)
    limits = build.call_limits(items, workers, what.device, preprocess)
    if workers.most_threads > 1:
        sharing = Sharing(threads=workers.most_threads, encoders=workers.encode, items=items)
        encode = replace(encode, sharing=sharing)
    mean_bytes = sum(one.size_bytes for one in planned) / max(1, sum(one.rows for one in planned))
    rows = expected_rows(limits, mean_bytes)
    window = build.window(rows, frozen.shard_rows, workers, calls=encode.calls)
    notes = _beside_the_driver(Notes, window, workers.devices)
    remarks = Remarks(notes, summary.remarks)
    rate = ErrorRate(
        config.max_error_rate, Counts(items=summary.items, errors=Counter(summary.errors))
    )
    demand = GpuDemand(workers)
    machines = Machines(config, what.device, claimed, workers)
    brake = Brake(rate.watch, machines.watch, demand.watch, remarks.watch)
    line = ProgressLine(notes, items, workers=workers, watch=brake.watch)
    found = build.run(
        shards,
        limits=limits,
        preprocess=preprocess,
        encode=encode,
        commit=_commit_config(config, what, shards, frozen, summary.run),
        workers=workers,
        notes=notes,
    )
    with brake, _told_in_a_line(), demand, line, closing(found):
        seen: set[str] = set()
        for done in found:
            if done.node not in seen:
                _check_shared(config.output, done.marker.shard)
                seen.add(done.node)
            summary.add(done.marker)
            del left[done.marker.shard]
        line.refresh()
        remarks.watch(line.pace.counts)
    summary.fill = line.pace.counts.fill
    summary.steady_items_s = line.pace.steady_items_s
    summary.stages = line.pace.steady


def _commit_config(
    config: EmbedConfig, what: Identity, shards: list[Shard], frozen: Generation, run: str
) -> CommitConfig:
    return CommitConfig(
        output=config.output,
        run=run,
        fingerprint=fingerprint(what.semantics),
        partition_by=frozen.partition_by,
        columns=tuple(frozen.columns),
        level=config.level,
        embedding=schema.embedding_type(what.encoder.config.out_hidden_size, config.output_dtype),
        rows={shard.id: shard.rows for shard in shards},
    )


def _beside_the_driver(kind: type, *args: object) -> Any:
    """A small actor that must not vanish with a machine that only lends its CPUs."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A connection that breaks off for a moment must not fail whoever asks it.
    options: dict[str, Any] = {"num_cpus": 0, "max_task_retries": -1}
    actor: Any = ray.remote(kind).options(scheduling_strategy=here, **options)
    return actor.remote(*args)


def _check_shared(output: str, shard: str) -> None:
    """A marker that the driver cannot see was written to another machine's own disk.

    One of each machine's is looked for: it shows where that machine writes to.
    """
    place = join(output, layout.marker(shard))
    if storage_for(output).stat(place) is None:
        raise StorageError(
            f"{place} was written, but is not seen from here: --output must be on storage that "
            "all machines share"
        )


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Turns what a stage raised in some actor into the one exception that says it."""
    try:
        yield
    except (PatchflowError, ray.exceptions.RayError, RuntimeError, OSError, ValueError) as error:
        if _is_ours(error):
            raise
        causes = list(_causes(error))
        for cause in causes:
            if _is_ours(cause):
                # Ray Data adds its advice on retries below.
                raise type(cause)(str(cause).partition("\n")[0]) from error
        told = _told(causes[-1])
        raise InternalError(f"the run failed: {told}; --verbose tells more") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: object = error
    while isinstance(cause, BaseException):
        yield cause
        cause = getattr(cause, "cause", None) or cause.__cause__


def _told(error: BaseException) -> str:
    """One line: Ray's own errors end with what matters, all others begin with it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayError):
        return lines[-1] if lines else type(error).__name__
    return ": ".join([type(error).__name__, *lines[:1]])


def _is_ours(error: BaseException) -> bool:
    # Ray's own are made of the class that the task raised, too, and say the whole traceback.
    return isinstance(error, PatchflowError) and not isinstance(error, ray.exceptions.RayError)
