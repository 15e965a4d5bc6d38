"""The end of the stream: blocks in, in any order; each shard committed once all of it is there.

The driver holds references to blocks, never the vectors in them. A tiny task beside each block
says whose it is; another one takes all blocks of a shard and commits it. The engine's output is
read in a thread, so that the main one hears of everything at once: blocks, ends of tasks, and
signals.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline import schema
from pipeline.commit import CommitConfig, commit_shard
from pipeline.errors import InternalError, LostError

# Tasks of a kind that run at once: without a CPU to claim, every one more is a process more.
_AT_ONCE = 4
# They wait for storage, not for a CPU, and outlive their machines.
_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_retries": -1,
    "retry_exceptions": [ray.exceptions.RaySystemError],
}

# What the main thread does next; a marker is passed on.
_Event = Callable[[], bytes | None]


def committed(encoded: ray.data.Dataset, config: CommitConfig) -> Iterator[bytes]:
    """Runs the stream to its end and commits its shards, each as soon as it is whole.

    Args:
        encoded: Blocks of `schema.encoded` rows, each of one shard.
        config: Where to, and how many rows each shard has.

    Yields:
        A committed shard's marker as JSON, whoever decided it.

    Raises:
        LostError: Blocks went with a machine, and cannot be made again.
        InternalError: The stream ended without all rows of a shard.
        PatchflowError: What a stage or a commit has raised.
    """
    # Waits for the first block. `iter_internal_ref_bundles` gives nothing to stop the engine by.
    bundles, _, executor = encoded._execute_to_iterator()
    assembly = _Assembly(config)
    threading.Thread(target=assembly.read, args=(bundles,), name="blocks", daemon=True).start()
    try:
        yield from assembly.markers()
    finally:
        if executor is not None:
            executor.shutdown(force=False)
        assembly.cancel()


class _Tasks:
    """Tasks of one kind, a few at once; the others wait for their turn."""

    def __init__(self, function: Callable[..., Any], events: SimpleQueue[_Event]) -> None:
        self._task: Any = ray.remote(**_OPTIONS)(function)
        self._events = events
        self._waiting: deque[tuple[tuple[object, ...], Callable[[Any], bytes | None]]] = deque()
        self.running: set[ray.ObjectRef[Any]] = set()

    def add(self, *args: object, then: Callable[[Any], bytes | None]) -> None:
        """Has the task done on `args`, references to what it is given, `then` what follows."""
        self._waiting.append((args, then))
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self.running) < _AT_ONCE:
            args, then = self._waiting.popleft()
            ref = self._task.remote(*args)
            self.running.add(ref)
            self._tell(ref, then)

    def _tell(self, ref: ray.ObjectRef[Any], then: Callable[[Any], bytes | None]) -> None:
        def ended(result: Future[Any]) -> None:  # In a thread of Ray's.
            self._events.put(partial(self._finish, ref, result, then))

        ref.future().add_done_callback(ended)

    def _finish(
        self, ref: ray.ObjectRef[Any], result: Future[Any], then: Callable[[Any], bytes | None]
    ) -> bytes | None:
        self.running.remove(ref)
        self._start()
        try:
            found = result.result()
        except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError) as error:
            # Whoever made a block that the task was given is gone, too.
            raise LostError("what was embedded went with a machine") from error
        return then(found)


class _Assembly:
    """Which blocks of which shard are there."""

    def __init__(self, config: CommitConfig) -> None:
        self._config = config
        self._config_ref = ray.put(config)
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._ended = False
        self._labels = _Tasks(shard_of, self._events)
        self._commits = _Tasks(commit_blocks, self._events)
        self._blocks: defaultdict[str, list[Any]] = defaultdict(list)
        self._rows: Counter[str] = Counter()

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
        while not self._ended or self._labels.running or self._commits.running:
            marker = self._events.get()()
            if marker is not None:
                yield marker
        if self._blocks:
            raise InternalError(f"rows of {sorted(self._blocks)[:4]} were lost on their way")

    def cancel(self) -> None:
        """Lets no task wait on for what may never come."""
        with suppress(ray.exceptions.RayError):
            for ref in self._labels.running | self._commits.running:
                ray.cancel(ref)

    def _came(self, block: Any) -> None:
        self._labels.add(block.ref, then=partial(self._sort_in, block))

    def _sort_in(self, block: Any, shard: str) -> None:
        self._blocks[shard].append(block.ref)
        self._rows[shard] += block.metadata.num_rows
        if self._rows[shard] == self._config.rows[shard]:
            del self._rows[shard]
            self._commits.add(self._config_ref, *self._blocks.pop(shard), then=_pass_on)

    def _end(self, error: BaseException | None = None) -> None:
        if error is not None:
            raise error
        self._ended = True


def _pass_on(marker: bytes) -> bytes:
    return marker


def shard_of(block: pa.Table) -> str:
    """The shard that a block's rows are of."""
    name: str = block["shard"][0].as_py()
    return name


def commit_blocks(config: CommitConfig, *blocks: pa.Table) -> bytes:
    """Commits a shard, of which these are all the blocks; its marker as JSON."""
    in_order = sorted(blocks, key=lambda block: block[schema.PLACE.name][0].as_py())
    return commit_shard(pa.concat_tables(in_order), config)
