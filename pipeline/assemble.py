"""The end of the stream: blocks in, in any order; each shard committed once all of it is there.

The driver holds references to blocks, never the vectors in them. Whose a block is, the task that
made it has told the counter beside the driver: a task beside the block, to look into it, would
often be a process to start. The engine's output is read in a thread, so that the main one hears
of everything at once: blocks, ends of tasks, and signals.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import ray
import ray.data
from ray.actor import ActorHandle

from pipeline.commit import CommitConfig, commit_blocks
from pipeline.errors import InternalError, LostError
from pipeline.progress import Counts

# Commits wait for storage, not for a CPU, and outlive their machines.
_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_retries": -1,
    "retry_exceptions": [ray.exceptions.RaySystemError],
}

# What the main thread does next; a marker is passed on.
_Event = Callable[[], bytes | None]


def committed(
    encoded: ray.data.Dataset, config: CommitConfig, progress: ActorHandle[Any], *, at_once: int
) -> Iterator[bytes]:
    """Runs the stream to its end and commits its shards, each as soon as it is whole.

    Args:
        encoded: Blocks of `schema.encoded` rows, each of one shard.
        config: Where to, and how many rows each shard has.
        progress: The `ProgressCounter` that is told by `tell_shard`.
        at_once: The most commits that run at once.

    Yields:
        A committed shard's marker as JSON, whoever decided it.

    Raises:
        LostError: Blocks went with a machine, and cannot be made again.
        InternalError: The stream ended without all rows of a shard.
        PatchflowError: What a stage or a commit has raised.
    """
    # Waits for the first block. `iter_internal_ref_bundles` gives nothing to stop the engine by.
    bundles, _, executor = encoded._execute_to_iterator()
    assembly = _Assembly(config, progress, at_once)
    threading.Thread(target=assembly.read, args=(bundles,), name="blocks", daemon=True).start()
    try:
        yield from assembly.markers()
    finally:
        if executor is not None:
            executor.shutdown(force=False)
        assembly.cancel()


class _Assembly:
    """Which blocks of which shard are there, and which commits are under way."""

    def __init__(self, config: CommitConfig, progress: ActorHandle[Any], at_once: int) -> None:
        self._at_once = at_once
        self._rows_of = config.rows
        self._config = ray.put(config)
        self._commit: Any = ray.remote(**_OPTIONS)(commit_blocks)
        self._progress = progress
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._ended = False
        self._asked = 0
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

    def markers(self) -> Iterator[bytes]:
        """Does what is to be done until nothing is left."""
        while not self._ended or self._asked or self._commits:
            marker = self._events.get()()
            if marker is not None:
                yield marker
        if self._blocks:
            raise InternalError(f"rows of {sorted(self._blocks)[:4]} were lost on their way")

    def cancel(self) -> None:
        """Lets no commit wait on for a block that may never come."""
        with suppress(ray.exceptions.RayError):
            for ref in self._commits:
                ray.cancel(ref)

    def _after(self, ref: ray.ObjectRef[Any], then: Callable[[Future[Any]], bytes | None]) -> None:
        def ended(result: Future[Any]) -> None:  # In a thread of Ray's.
            self._events.put(partial(then, result))

        ref.future().add_done_callback(ended)

    def _end(self, error: BaseException | None = None) -> None:
        if error is not None:
            raise error
        self._ended = True

    def _came(self, block: Any) -> None:
        self._asked += 1
        answer: Any = self._progress.shard_of.remote(block.ref.task_id().hex())
        self._after(answer, partial(self._sort_in, block))

    def _sort_in(self, block: Any, answer: Future[str]) -> None:
        self._asked -= 1
        shard = answer.result()
        self._blocks[shard].append(block.ref)
        self._rows[shard] += block.metadata.num_rows
        if self._rows[shard] == self._rows_of[shard]:
            del self._rows[shard]
            self._whole.append(shard)
            self._commit_next()

    def _commit_next(self) -> None:
        while self._whole and len(self._commits) < self._at_once:
            shard = self._whole.popleft()
            ref = self._commit.remote(self._config, *self._blocks.pop(shard))
            self._commits.add(ref)
            self._after(ref, partial(self._committed, ref, shard, time.monotonic()))

    def _committed(
        self, ref: ray.ObjectRef[bytes], shard: str, began: float, result: Future[bytes]
    ) -> bytes:
        self._commits.remove(ref)
        took_s = time.monotonic() - began
        counts = Counts(committed=self._rows_of[shard], commits=1, commit_s=took_s)
        self._progress.add.remote(counts)
        self._commit_next()
        try:
            return result.result()
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError) as error:
            # Whoever made a block is gone, too.
            raise LostError("what was embedded went with a machine") from error
