"""The whole pipeline on one screen.

    manifest rows, shard by shard      tasks       a block of rows as large as patches allow
      -> Preprocess                    CPU actors  uri -> uint8 patches, grid_thw | error
      -> Encode                        GPU actors  packs -> vectors | error
      -> one commit a shard            tasks       objects, then the marker -> its JSON

Every row in is one row out of every stage, and a block holds rows of one shard only. No stage
keeps blocks in order: while one waits for a long clip, the others go on, and so do later shards,
up to the window. A shard is committed once all of its rows are there. Blocks of several rows
reach Preprocess as one nested row each: the engine can cut a stream after every row, but not
where we please. Preprocess makes several blocks of one whose patches turn out to be too many.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from pipeline import schema
from pipeline.assemble import Committed, committed
from pipeline.call_sizes import CallLimits, cut
from pipeline.commit import CommitConfig
from pipeline.config import ComputeDevice
from pipeline.encode import Encode, EncodeConfig
from pipeline.manifest import Shard, read_shard
from pipeline.one_machine import is_known_ray
from pipeline.preprocess import Preprocess, PreprocessConfig
from pipeline.progress import Counts, StillSizes
from pipeline.workers import Workers

# The most rows of a call. On a CPU one of thumbnails takes seconds, and more rows would leave one
# actor at work when the others have nothing left; to a GPU's driver each call is 5 ms of work.
_CALL_ROWS: dict[ComputeDevice, int] = {"cpu": 128, "cuda": 1024}
# Of a run's first call, for which the encoders wait.
_FIRST_CALL_ROWS = 8
# How often a source task asks whether its shard may start.
_GATE_S = 0.5
# Actors hold at most this many blocks: the two they work on, and one queued for them, so that
# little waits behind a long clip. Those that work on more hold one more than that.
_IN_FLIGHT = 3


def call_limits(
    items: int, workers: Workers, device: ComputeDevice, preprocess: PreprocessConfig
) -> CallLimits:
    """What bounds the rows of a call: few enough to give every actor its share."""
    share = -(-items // (4 * workers.decoders))
    rows = max(1, min(_CALL_ROWS[device], share))
    return CallLimits.of(preprocess, rows=rows, first_rows=min(_FIRST_CALL_ROWS, rows))


def window(rows: int, shard_rows: int, workers: Workers, *, calls: int) -> int:
    """Shards that may be under way: enough to fill every actor, and one to follow on.

    Args:
        rows: That an actor is expected to take at once. Where some items are larger, shards are
            left for the others to go on with while long clips keep some open.
        shard_rows: Of a shard.
        workers: How many actors there are.
        calls: That an encoder takes at once.
    """
    preprocess = workers.preprocess * _in_flight(_preprocess_calls(workers))
    blocks = preprocess + workers.encode * _in_flight(calls)
    return 2 + -(-blocks * rows // shard_rows)


def _preprocess_calls(workers: Workers) -> int:
    """Calls at once of a preprocessing actor: a decoder's own, and one that fetches meanwhile."""
    return 2 * workers.decoders_an_actor


def _in_flight(calls: int) -> int:
    """Blocks that an actor which takes so many calls at once holds."""
    return max(_IN_FLIGHT, calls + 1)


def run(
    shards: list[Shard],
    *,
    limits: CallLimits,
    preprocess: PreprocessConfig,
    encode: EncodeConfig,
    commit: CommitConfig,
    workers: Workers,
    notes: ActorHandle[Any],
) -> Generator[Committed, None, None]:
    """Embeds and commits `shards`; yields each once it is committed, in any order."""
    _configure(preprocess.block_bytes)
    rows = _source(shards, commit.output, limits, workers.source_tasks, notes)
    # One block in; one block out, or several. `memory` also keeps the engine from fusing this with
    # the source, which would make one call of a whole shard.
    patches = rows.map_batches(
        Preprocess,
        fn_constructor_args=(preprocess, notes),
        batch_size=None,
        batch_format="pyarrow",
        compute=_actors(workers.preprocess, calls=_preprocess_calls(workers)),
        num_cpus=workers.preprocess_cpus,
        memory=workers.preprocess_bytes,
    )
    # One block in, one block out; patches end here, vectors go on. `map_batches` itself refuses a
    # GPU without a batch size, and with one it joins blocks, whose rows would be several shards'.
    vectors = patches.map_batches_internal(
        Encode,
        fn_constructor_args=(encode, notes),
        batch_size=None,
        batch_format="pyarrow",
        compute=_actors(workers.encode, calls=encode.calls),
        num_cpus=workers.encode_cpus,
        num_gpus=workers.encode_gpus,
        memory=workers.encode_bytes,
    )
    # Many blocks in, one marker a shard out.
    for done in committed(vectors, commit, notes, workers):
        notes.commit.remote(done.marker.shard)
        yield done


def _configure(block_bytes: int) -> None:
    context = ray.data.DataContext.get_current()
    # A block that `Preprocess` passes on is one block of the engine: it holds back what is smaller,
    # until the call ends, and cuts what is half as large again.
    context.target_max_block_size = block_bytes
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # Its thread in every call tells nobody anything.
    context.raise_original_map_exception = True
    if is_known_ray():
        # Every worker is sent these settings, and the detectors' would have it import all that
        # they need, a quarter of a second; what they look for does not occur here.
        detectors: Any = SimpleNamespace(detectors=[])
        context.issue_detectors_config = detectors


def _source(
    shards: list[Shard],
    output: str,
    limits: CallLimits,
    tasks: int,
    progress: ActorHandle[Any],
) -> ray.data.Dataset:
    """The shards' manifest rows, cut into calls: a task a shard, `tasks` at once."""
    numbers = [{"id": number} for number in range(len(shards))]
    nested = ray.data.from_items(numbers, override_num_blocks=len(shards)).map_batches(
        partial(read_rows, shards=shards, output=output, limits=limits, progress=progress),
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )
    return _fused(nested.repartition(target_num_rows_per_block=1), tasks)


def _actors(size: int, *, calls: int) -> ray.data.ActorPoolStrategy:
    """A pool of `size` actors, each of which takes `calls` at once."""
    return ray.data.ActorPoolStrategy(
        size=size,
        max_tasks_in_flight_per_actor=_in_flight(calls),
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,  # Otherwise calls do not run in their tasks' threads.
    )


def _fused(repartitioned: ray.data.Dataset, tasks: int) -> ray.data.Dataset:
    """Lets the engine cut a shard in the very task that reads it, `tasks` at once, with no CPU.

    It does so where both claim the same; `Dataset.repartition` takes no claims, though its operator
    does. Every short task of this pipeline claims no CPU: beside a pool that has them all, the
    engine would keep one that does waiting for ever.
    """
    operator: Any = repartitioned._logical_plan.dag
    operator.ray_remote_args["num_cpus"] = 0
    operator.compute.size = tasks
    return repartitioned


def read_rows(
    batch: dict[str, npt.NDArray[np.int64]],
    *,
    shards: list[Shard],
    output: str,
    limits: CallLimits,
    progress: ActorHandle[Any],
) -> pa.Table:
    """The manifest rows of the run's shard number `batch["id"]`, nested: one row a block to be.

    Waits until the gate lets this shard in.
    """
    (position,) = batch["id"].tolist()
    shard = shards[position]
    while (seen := _released(progress, position, shard.id)) is None:
        time.sleep(_GATE_S)
    began = time.monotonic()
    rows = read_shard(output, shard)
    if position:
        limits = replace(limits, first_rows=limits.rows)
    items = zip(*(rows[name].to_pylist() for name in ("media_type", "size_bytes")), strict=True)
    nested = nest(rows, cut(items, limits, seen))
    took_s = time.monotonic() - began
    progress.add.remote(Counts(read=rows.num_rows, shards_read=1, read_s=took_s))
    return nested


def _released(progress: ActorHandle[Any], position: int, shard: str) -> StillSizes | None:
    answer: Any = progress.release.remote(position, shard)
    found: StillSizes | None = ray.get(answer)
    return found


def nest(rows: pa.Table, cuts: list[int]) -> pa.Table:
    """Cuts a shard into blocks-to-be, one row each: `rows`, a list of structs.

    Each item takes its place in the shard along. `preprocess.unnest` is the inverse.
    """
    places = pa.array(range(rows.num_rows), schema.PLACE.type)
    structs = rows.append_column(schema.PLACE, places).combine_chunks().to_struct_array()
    offsets = pa.array(cuts, pa.int32())
    return pa.table({"rows": pa.ListArray.from_arrays(offsets, structs.combine_chunks())})
