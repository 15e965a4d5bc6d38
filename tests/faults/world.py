"""One simulated output: a growing collection, its drivers and planners, and how it ends."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.drive
import pipeline.embed
from pipeline import schema
from pipeline.commit import commit_shard
from pipeline.config import EmbedConfig, PlanConfig
from pipeline.identity import Identity
from pipeline.location import join
from pipeline.manifest import Generation, Shard, read_shard
from pipeline.marker import Marker
from pipeline.objects import Storage
from pipeline.plan import plan_next
from pipeline.storage import storage_for
from pipeline.summary import Summary
from pipeline.verify import verify
from tests.faults.invariants import Promises, check_complete, contents
from tests.faults.simulated_storage import MemoryS3, step_on_disk, step_on_s3
from tests.faults.simulation import TALLY, Process, Simulation, current

OpenWorld = Callable[..., AbstractContextManager["World"]]


class World:
    """An output, those that work on it, and the collection that they are given.

    A run is named after its process, and so are the vectors and errors that it makes: whatever
    two runs mix shows.
    """

    def __init__(
        self,
        output: str,
        inputs: Path,
        *,
        shard_rows: int = 2,
        partition_by: tuple[str, ...] = (),
    ) -> None:
        self.output = output
        self.promises = Promises(output)
        self.simulation = Simulation(output, self.promises)
        self.collection: dict[str, dict[str, str]] = {}
        self._inputs, self._edition = inputs, 0
        self._layout: dict[str, Any] = {"shard_rows": shard_rows, "partition_by": partition_by}

    def add(self, count: int) -> None:
        """New items, of one of two labels."""
        for number in range(len(self.collection), len(self.collection) + count):
            label = "cat" if number % 3 else "a/b"
            self.collection[f"/media/{number}.jpg"] = {"version": "0", "label": label}
        self._publish()

    def change(self, number: int) -> None:
        """A new version of the item that came as the `number`-th."""
        item = [*self.collection.values()][number]
        item["version"] = str(int(item["version"]) + 1)
        self._publish()

    def _publish(self) -> None:
        self._edition += 1
        columns = {"uri": [*self.collection]} | {
            name: [item[name] for item in self.collection.values()] for name in ("version", "label")
        }
        pq.write_table(pa.table(columns), self._manifest())

    def _manifest(self) -> str:
        return str(self._inputs / f"{self._edition}.parquet")

    def drive(self, shards: str | None = None) -> Process:
        """Starts the command `embed`, on all shards or on a slice."""
        config = EmbedConfig(
            inputs=(self._manifest(),),
            root=("/media",),
            output=self.output,
            device="cpu",
            shards=shards,
            **self._layout,
        )
        name = f"driver-{len(self.simulation.processes)}"
        embed = pipeline.embed.embed
        return self.simulation.start(name, lambda: embed(config, on_plan=lambda _: None))

    def plan(self) -> Process:
        """Starts the command `plan`."""
        config = PlanConfig(
            inputs=(self._manifest(),), root=("/media",), output=self.output, **self._layout
        )
        name = f"planner-{len(self.simulation.processes)}"
        return self.simulation.start(name, lambda: plan_next(config, self.output))

    def litter(self) -> None:
        """What an older attempt left of the first shard under the names of its objects."""
        # Which folder a partitioned shard lies in is not known before it is planned.
        for table in ("errors",) if self._layout["partition_by"] else ("errors", "embeddings"):
            place = join(self.output, f"{table}/g000000-00000000.parquet")
            storage_for(place).write(place, b"of an older attempt, and longer than nothing" * 200)

    def finish(self, zombies: tuple[Process, ...] = ()) -> None:
        """Everybody ends, the command is given again, and all is as if nothing had happened.

        The zombies wake when all is done, and change nothing.
        """
        for process in self.simulation.running:
            if process not in zombies:
                self.simulation.run(process)
        self._complete()
        for zombie in zombies:
            self.simulation.run(zombie)
        if zombies:
            self._complete()
        before = contents(self.output)
        assert self._resume().writes == 0
        assert contents(self.output) == before
        audit = verify(self.output)
        assert (audit.breaches, audit.unfinished) == ([], [])

    def _complete(self) -> None:
        self.simulation.deliver()
        self._resume()
        check_complete(self.output, self.promises, self.collection)

    def _resume(self) -> Process:
        driver = self.drive()
        self.simulation.run(driver)
        return driver


@contextmanager
def simulated(folder: Path, server: Storage | None = None) -> Iterator[OpenWorld]:
    """Makes what opens a world on `disk` or on `s3`, while everything is a step there.

    `s3` is in memory, or `server` if that is given.
    """
    s3 = server or MemoryS3()
    with pytest.MonkeyPatch.context() as patch:
        _without_ray(patch)
        step_on_disk(patch)
        step_on_s3(patch, s3)

        @contextmanager
        def open_world(kind: str, story: object, **layout: Any) -> Iterator[World]:
            inputs = Path(tempfile.mkdtemp(dir=folder))
            output = f"s3://embeddings/{inputs.name}" if kind == "s3" else str(inputs / "output")
            world = World(output, inputs, **layout)
            try:
                yield world
                TALLY.add(world.simulation.processes)
            except BaseException as error:
                error.add_note("\n".join([f"{kind}: {story}", *world.simulation.trace[-100:]]))
                raise
            finally:
                world.simulation.kill_all()
                shutil.rmtree(inputs)
                if isinstance(s3, MemoryS3):
                    s3.objects.clear()

        yield open_world


def _without_ray(patch: pytest.MonkeyPatch) -> None:
    """Lets `pipeline.embed` commit made-up vectors in its own process."""
    patch.setattr("pipeline.embed.ray_running", _no_cluster)
    patch.setattr("pipeline.embed._run_name", lambda: current.process.name)
    patch.setattr("pipeline.drive.drive", _drive)
    # Most of the time would go into what is the same in every marker.
    patch.setattr("pipeline.commit.version", cache(version))


@contextmanager
def _no_cluster(*, verbose: bool, device: str) -> Iterator[None]:
    yield


def _drive(
    config: EmbedConfig,
    what: Identity,
    shards: list[Shard],
    planned: list[Generation],
    summary: Summary,
) -> None:
    """`pipeline.drive.drive` with tasks that end in any order, one after the other."""
    commit = pipeline.drive._commit_config(config, what, shards, planned[0], summary.run)
    for shard in Random(summary.run).sample(shards, len(shards)):
        rows = read_shard(config.output, shard)
        block = _encoded(rows, summary.run, commit.embedding)
        marker = Marker.from_json(commit_shard(block, commit))
        pipeline.drive._check_shared(config.output, marker.shard)
        summary.add(marker)


def _encoded(rows: pa.Table, run: str, embedding: pa.DataType) -> pa.Table:
    """What Encode would make of a shard; which items fail is another in every run."""
    count, shard = rows.num_rows, rows["shard"][0].as_py()
    random = Random(f"{run} {shard}")
    rate = random.choice([0.0, 0.4, 1.0])
    failed = [random.random() < rate for _ in range(count)]
    value = float(run.rpartition("-")[2])
    found: dict[str, list[Any]] = {
        "content_hash": [None if bad else run for bad in failed],
        "width": [None if bad else 28 for bad in failed],
        "height": [None if bad else 28 for bad in failed],
        "grid_thw": [None if bad else [1, 2, 2] for bad in failed],
        "stage": ["preprocess" if bad else None for bad in failed],
        "error_code": ["corrupt" if bad else None for bad in failed],
        "error_message": [run if bad else None for bad in failed],
        "attempts": [1 if bad else None for bad in failed],
        "num_tokens": [None if bad else 1 for bad in failed],
        "device": ["cpu"] * count,
        "embedding": [[] if bad else np.full(embedding.list_size, value) for bad in failed],
    }
    target = schema.encoded(schema.preprocessed(rows.schema), embedding.value_type)
    columns = []
    for field in target:
        known = rows[field.name].to_pylist() if field.name in rows.column_names else None
        columns.append(found.get(field.name) or known or [None] * count)
    return pa.table(columns, schema=target)
