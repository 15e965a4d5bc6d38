"""The whole pipeline on one screen.

    manifest rows, shard by shard      tasks       a few rows a block
      -> Preprocess                    CPU actors  uri -> uint8 patches, grid_thw | error
      -> Encode                        GPU actors  packs -> vectors | error
      -> one block a shard             tasks       strict repartition, order kept
      -> commit_shard                  tasks       objects, then the marker -> its JSON

Every row in is one row out of every stage. Short shards are filled up with empty rows, so that
the engine's own repartition cuts the stream exactly at shard boundaries. Blocks of several rows
reach Preprocess as one nested row each: the engine can cut a stream after every row, but not
where we please.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from pipeline.cluster import Workers
from pipeline.commit import CommitConfig, commit_shard
from pipeline.encode import Encode, EncodeConfig
from pipeline.manifest import Shard, read_shard
from pipeline.marker import Marker
from pipeline.preprocess import Preprocess, PreprocessConfig

_GIB = 2**30
# A call's output is one block: this bounds it, with the largest image in every row.
_BLOCK_BYTES = 64 * 2**20
_BLOCK_ROWS = 64
# How often a source task asks whether its shard may start.
_GATE_S = 0.2
# Actors hold at most this many blocks: those they work on and those queued for them.
_IN_FLIGHT = 4


def block_rows(config: PreprocessConfig, items: int, workers: Workers) -> int:
    """Rows a block: few enough to bound its bytes, and to give every actor its share."""
    fair = -(-items // (4 * workers.preprocess))
    return max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // config.item_bytes, fair))


def window(rows_a_block: int, shard_rows: int, workers: Workers) -> int:
    """Shards that may be under way: enough to fill every actor, and one to follow on."""
    actors = workers.preprocess + workers.encode
    return 2 + -(-actors * _IN_FLIGHT * rows_a_block // shard_rows)


def run(
    shards: list[Shard],
    *,
    rows_a_block: int,
    preprocess: PreprocessConfig,
    encode: EncodeConfig,
    commit: CommitConfig,
    workers: Workers,
    progress: ActorHandle[Any],
    attempts: ActorHandle[Any],
) -> Iterator[Marker]:
    """Embeds and commits `shards`, in order; yields each one's marker once it is written."""
    _configure()
    rows = _source(shards, commit, rows_a_block, progress)
    # One block in, one block out. `memory` also keeps the engine from fusing this with the
    # source, which would make one call of a whole shard.
    patches = rows.map_batches(
        Preprocess,
        fn_constructor_args=(preprocess,),
        batch_size=None,
        batch_format="pyarrow",
        compute=_actors(workers.preprocess, calls=2),
        num_cpus=workers.preprocess_cpus,
        memory=_GIB,
    )
    # One block in, one block out; patches end here, vectors go on. A second call would overlap
    # copies with a GPU's work; on a CPU it has nothing to overlap with, and costs memory.
    vectors = patches.map_batches(
        Encode,
        fn_constructor_args=(encode, progress, attempts),
        batch_size=None,
        batch_format="pyarrow",
        compute=_actors(workers.encode, calls=2 if workers.encode_gpus else 1),
        num_cpus=workers.encode_cpus,
        num_gpus=workers.encode_gpus,
        memory=_GIB + 1,
    )
    # Many blocks in, one block a shard out.
    blocks = _without_cpus(
        vectors.repartition(target_num_rows_per_block=commit.shard_rows, strict=True)
    )
    # One block in, one tiny row out. Writing waits for storage, not for a CPU.
    markers = blocks.map_batches(
        partial(commit_shard, config=commit),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=4),
    )
    yield from _committed(markers, progress)


def _configure() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = None  # A call's output is one block, replayed or not.
    context.enable_progress_bars = False
    context.raise_original_map_exception = True


def _source(
    shards: list[Shard], commit: CommitConfig, rows_a_block: int, progress: ActorHandle[Any]
) -> ray.data.Dataset:
    """The shards' manifest rows, a few a block: one task at a time, as the gate opens."""
    numbers = [{"id": number} for number in range(len(shards))]
    nested = ray.data.from_items(numbers, override_num_blocks=len(shards)).map_batches(
        partial(
            read_rows, shards=shards, commit=commit, rows_a_block=rows_a_block, progress=progress
        ),
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(size=1),
    )
    return _without_cpus(nested.repartition(target_num_rows_per_block=1))


def _actors(size: int, *, calls: int) -> ray.data.ActorPoolStrategy:
    """A pool of `size` actors, each of which takes `calls` at once."""
    return ray.data.ActorPoolStrategy(
        size=size,
        max_tasks_in_flight_per_actor=_IN_FLIGHT,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


def _committed(markers: ray.data.Dataset, progress: ActorHandle[Any]) -> Iterator[Marker]:
    # Without prefetching: a marker that waits for the next one would keep the gate shut.
    for batch in markers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        table: pa.Table = batch
        for marker in table["marker"].to_pylist():
            progress.commit.remote()
            yield Marker.from_json(marker)


def _without_cpus(repartitioned: ray.data.Dataset) -> ray.data.Dataset:
    """Lets the tasks of a repartition run on machines whose CPUs are all in actors' hands.

    Every short task of this pipeline claims no CPU: beside a pool that has them all, the engine
    would keep one that does waiting for ever. `Dataset.repartition` takes no resources, though
    its operator does.
    """
    operator: Any = repartitioned._logical_plan.dag
    operator.ray_remote_args["num_cpus"] = 0
    return repartitioned


def read_rows(
    batch: dict[str, npt.NDArray[np.int64]],
    shards: list[Shard],
    commit: CommitConfig,
    rows_a_block: int,
    progress: ActorHandle[Any],
) -> pa.Table:
    """The manifest rows of the run's shard number `batch["id"]`, nested: one row a block to be.

    Waits until the gate lets this shard in.
    """
    (position,) = batch["id"].tolist()
    while not ray.get(progress.is_open.remote(position)):
        time.sleep(_GATE_S)
    shard = shards[position]
    return nest(read_shard(commit.output, shard), shard.id, commit.shard_rows, rows_a_block)


def nest(rows: pa.Table, shard: str, shard_rows: int, rows_a_block: int) -> pa.Table:
    """Cuts a shard into blocks-to-be, one row each: `rows`, a list of structs.

    The last one also takes the empty rows that fill the shard up to `shard_rows`; they have the
    shard's name and nothing else. `preprocess.unnest` is the inverse.
    """
    missing = shard_rows - rows.num_rows
    empty = [
        pa.array([shard] * missing) if field.name == "shard" else pa.nulls(missing, field.type)
        for field in rows.schema
    ]
    filled = pa.concat_tables([rows, pa.Table.from_arrays(empty, schema=rows.schema)])
    offsets = [*range(0, rows.num_rows, rows_a_block), shard_rows]
    structs = filled.combine_chunks().to_struct_array().combine_chunks()
    return pa.table({"rows": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)})
