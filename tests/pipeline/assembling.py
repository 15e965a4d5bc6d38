"""Commits streams of made-up blocks on a real Ray, one after the other; prints what came of each.

    python tests/pipeline/assembling.py FOLDER

FOLDER holds a pickle a stream: the configuration, the blocks, and how many of them, counted from
the end, are lost. Prints a line of JSON a stream: the markers' shards, the error.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from pipeline.cluster import quiet, ray_running

quiet()

import ray  # noqa: E402 (comes after `quiet`)

from pipeline.assemble import committed  # noqa: E402
from pipeline.progress import ProgressCounter  # noqa: E402
from tests.support.progress import workers  # noqa: E402


@ray.remote(num_cpus=0)
def make(progress: Any, block: pa.Table) -> pa.Table:
    task = ray.get_runtime_context().get_task_id()
    ray.get(progress.block_of.remote(task, block["shard"][0].as_py()))
    return block


class Owner:
    """Makes blocks that are lost without it."""

    def make(self, progress: Any, block: pa.Table) -> list[Any]:
        ref = ray.put(block)
        ray.get(progress.block_of.remote(ref.task_id().hex(), block["shard"][0].as_py()))
        return [ref]


def lose(progress: Any, block: pa.Table) -> Any:
    """A reference to a block that is gone."""
    owner: Any = ray.remote(num_cpus=0)(Owner).remote()
    (ref,) = ray.get(owner.make.remote(progress, block))
    ray.kill(owner)
    with suppress(ray.exceptions.ObjectLostError):
        while True:  # Which takes a moment.
            ray.get(ref)
            time.sleep(0.1)
    return ref


class Stream:
    """Blocks as the engine gives them."""

    def __init__(self, progress: Any, blocks: list[pa.Table], lost: int) -> None:
        kept = len(blocks) - lost
        refs = [make.remote(progress, block) for block in blocks[:kept]]
        ray.wait(refs, num_returns=kept)
        refs += [lose(progress, block) for block in blocks[kept:]]
        self._blocks = [
            SimpleNamespace(ref=ref, metadata=SimpleNamespace(num_rows=block.num_rows))
            for ref, block in zip(refs, blocks, strict=True)
        ]

    def _execute_to_iterator(self) -> tuple[Iterator[Any], None, None]:
        return (SimpleNamespace(blocks=[block]) for block in self._blocks), None, None


def run(path: Path) -> dict[str, Any]:
    config, blocks, lost = pickle.loads(path.read_bytes())
    progress: Any = ray.remote(num_cpus=0)(ProgressCounter).remote(1)
    stream: Any = Stream(progress, blocks, lost)
    shards = []
    error = None
    try:
        for done in committed(stream, config, progress, workers(gpus=1.0)):
            shards.append(done.marker.shard)
    except Exception as raised:
        error = [kind.__name__ for kind in type(raised).__mro__]
    return {"shards": sorted(shards), "error": error}


def main(folder: str) -> None:
    with ray_running(verbose=False):
        for path in sorted(Path(folder).iterdir()):
            print(json.dumps({path.stem: run(path)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
