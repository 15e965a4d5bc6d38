"""The end of the stream: blocks in, in any order; each shard committed once all of it is there.

The driver holds references to blocks, never the vectors in them. The coordinator beside it knows
which shard a task's block is of; the driver asks it for all new blocks at once.
The engine's output is read in a thread, so that the main one hears of everything at once: blocks,
ends of tasks, and signals.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle

from pipeline import schema
from pipeline.commit import CommitConfig, commit_shard
from pipeline.commit_pace import CommitPace
from pipeline.errors import LostError
from pipeline.marker import Marker
from pipeline.progress import Counts
from pipeline.workers import Workers

# Commits wait for storage, not for a CPU, and outlive their machines.
_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_retries": -1,
    "retry_exceptions": [ray.exceptions.RaySystemError],
}
# The engine hands out blocks ten times a second.
_ASK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Committed:
    """A committed shard: its marker, whoever decided it, and the node that ran the commit."""

    marker: Marker
    node: str


# What the main thread does next; a committed shard is passed on.
_Event = Callable[[], Committed | None]


def committed(
    encoded: ray.data.Dataset, config: CommitConfig, progress: ActorHandle[Any], workers: Workers
) -> Iterator[Committed]:
    """Runs the stream to its end and commits its shards, each as soon as it is whole.

    Args:
        encoded: Blocks of `schema.encoded` rows, each of one shard.
        config: Where to, and how many rows each shard has.
        progress: The `ProgressCounter` that knows the blocks' shards.
        workers: How many commits may run at once.

    Raises:
        LostError: Blocks went with a machine, and cannot be made again; or rows of a shard are
            missing, or there twice.
        PatchflowError: What a stage or a commit has raised.
    """
    # Waits for the first block. `iter_internal_ref_bundles` gives nothing to stop the engine by.
    bundles, _, executor = encoded._execute_to_iterator()
    assembly = _Assembly(config, progress, CommitPace(workers.commits, workers.most_commits))
    threading.Thread(target=assembly.read, args=(bundles,), name="blocks", daemon=True).start()
    try:
        yield from assembly.committed()
    finally:
        if executor is not None:
            executor.shutdown(force=False)
        assembly.cancel()


def commit_blocks(config: CommitConfig, *blocks: pa.Table) -> Committed:
    """Commits a shard, of which these are all the blocks, in a task of Ray."""
    in_order = sorted(blocks, key=lambda block: block[schema.PLACE.name][0].as_py())
    marker = Marker.from_json(commit_shard(pa.concat_tables(in_order), config))
    return Committed(marker=marker, node=ray.get_runtime_context().get_node_id())


class _Assembly:
    """Which blocks of which shard are there, and which commits are under way."""

    def __init__(self, config: CommitConfig, progress: ActorHandle[Any], pace: CommitPace) -> None:
        self._pace = pace
        self._rows_of = config.rows
        self._config = ray.put(config)
        self._commit: Any = ray.remote(**_OPTIONS)(commit_blocks)
        self._progress = progress
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._ended = False
        self._new: list[Any] = []
        self._new_since = 0.0
        self._asking = False
        self._blocks: defaultdict[str, list[Any]] = defaultdict(list)
        self._rows: Counter[str] = Counter()
        self._whole: deque[str] = deque()
        self._commits: set[ray.ObjectRef[Any]] = set()

    def read(self, bundles: Iterator[Any]) -> None:
        """Passes the engine's output on to the main thread, to its end or failure."""
        try:
            for bundle in bundles:
                for block in bundle.blocks:
                    self._events.put(partial(self._came, block))
        except BaseException as error:
            self._events.put(partial(self._end, error))
        else:
            self._events.put(self._end)

    def committed(self) -> Iterator[Committed]:
        """Does what is to be done until nothing is left."""
        while not self._ended or self._new or self._asking or self._commits:
            try:
                event = self._events.get(timeout=self._ask_in_s())
            except Empty:
                self._ask()
                continue
            if (done := event()) is not None:
                yield done
        if self._blocks:
            # A call that Ray repeats makes the same blocks, unless a file or its decoding has
            # changed in between: then some rows of the first attempt's are in no block.
            raise LostError(f"rows of {sorted(self._blocks)[:4]} were lost on their way")

    def cancel(self) -> None:
        """Lets no commit wait on for a block that may never come."""
        with suppress(ray.exceptions.RayError):
            for ref in self._commits:
                ray.cancel(ref)

    def _after(
        self, ref: ray.ObjectRef[Any], then: Callable[[Future[Any]], Committed | None]
    ) -> None:
        def ended(result: Future[Any]) -> None:  # In a thread of Ray's.
            self._events.put(partial(then, result))

        ref.future().add_done_callback(ended)

    def _end(self, error: BaseException | None = None) -> None:
        if error is not None:
            raise error
        self._ended = True

    def _came(self, block: Any) -> None:
        if not self._new:
            self._new_since = time.monotonic()
        self._new.append(block)

    def _ask_in_s(self) -> float | None:
        """Seconds until the shards of new blocks are asked for: many blocks share a question."""
        if not self._new or self._asking:
            return None
        return max(0.0, self._new_since + _ASK_S - time.monotonic())

    def _ask(self) -> None:
        blocks, self._new = self._new, []
        self._asking = True
        tasks = [block.ref.task_id().hex() for block in blocks]
        answer: Any = self._progress.shards_of.remote(tasks)
        self._after(answer, partial(self._sort_in, blocks))

    def _sort_in(self, blocks: list[Any], answer: Future[list[str]]) -> None:
        self._asking = False
        for block, shard in zip(blocks, answer.result(), strict=True):
            self._blocks[shard].append(block.ref)
            self._rows[shard] += block.metadata.num_rows
            if self._rows[shard] > self._rows_of[shard]:
                raise LostError(f"a call was repeated with another result: rows of {shard} twice")
            if self._rows[shard] == self._rows_of[shard]:
                del self._rows[shard]
                self._whole.append(shard)
                self._pace.shard_is_whole(time.monotonic())
        self._commit_next()

    def _commit_next(self) -> None:
        while self._whole and len(self._commits) < self._pace.at_once:
            shard = self._whole.popleft()
            ref = self._commit.remote(self._config, *self._blocks.pop(shard))
            self._commits.add(ref)
            self._after(ref, partial(self._committed, ref, shard, time.monotonic()))

    def _committed(
        self, ref: ray.ObjectRef[Any], shard: str, began: float, result: Future[Committed]
    ) -> Committed:
        self._commits.remove(ref)
        took_s = time.monotonic() - began
        self._pace.commit_took(took_s)
        counts = Counts(committed=self._rows_of[shard], commits=1, commit_s=took_s)
        self._progress.add.remote(counts)
        self._commit_next()
        try:
            return result.result()
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError) as error:
            # Whoever made a block is gone, too.
            raise LostError("what was embedded went with a machine") from error
