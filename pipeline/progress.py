"""How far a run is, for people and for the source: one small actor, one line.

The actor counts what the encoders report. It also holds the gate that bounds how many shards
are under way: a shard's rows are released once enough others are committed, so what waits in
the cluster, and what a kill can cost, is bounded by configuration. Which ones does not matter: a
shard that a long clip keeps open takes one place, and the others go on. And it knows whose the
blocks are, which the driver does not look into.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LIVE_S = 0.5
_LOGGED_S = 5.0
# Rates are those of the last minute, so that the time left follows what happens now.
_WINDOW_S = 60.0


@dataclass
class Counts:
    """Sums over everything the encoders have reported. A block that was redone counts twice."""

    items: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    capacity: int = 0

    def add(self, other: Counts) -> None:
        """Adds up."""
        self.items += other.items
        self.errors.update(other.errors)
        self.tokens += other.tokens
        self.capacity += other.capacity

    @property
    def failed(self) -> int:
        """Items that became errors."""
        return self.errors.total()

    @property
    def fill(self) -> float:
        """Share of the token budget that the packs used."""
        return self.tokens / self.capacity if self.capacity else 0.0


class ProgressCounter:
    """The actor behind the line: sums of counts, the gate of the source, and whose blocks are."""

    def __init__(self, window: int) -> None:
        self._counts = Counts()
        self._window = window
        self._committed = 0
        self._shards: dict[str, str] = {}

    def add(self, counts: Counts) -> None:
        """Adds one encoder call's counts."""
        self._counts.add(counts)

    def snapshot(self) -> Counts:
        """The sums so far."""
        return self._counts

    def made(self, task: str, shard: str) -> None:
        """Notes that the block which a task of Ray makes is of `shard`."""
        self._shards[task] = shard

    def shard_of(self, task: str) -> str:
        """The shard of the block that a task has made."""
        return self._shards[task]

    def commit(self, shard: str) -> None:
        """Notes that one more shard of this run is committed."""
        self._committed += 1
        self._shards = {task: other for task, other in self._shards.items() if other != shard}

    def is_open(self, position: int) -> bool:
        """Whether the run's shard number `position` may be read now."""
        return position < self._committed + self._window


def tell_shard(progress: ActorHandle[Any], shard: str) -> None:
    """Tells whose block the calling task makes; waits until that is noted."""
    import ray  # noqa: PLC0415 (the command line's other jobs do without)

    task = ray.get_runtime_context().get_task_id()
    ray.get(progress.made.remote(task, shard))


class ProgressLine:
    """A live line on a terminal; in a log, a plain one every few seconds.

    `watch` is shown every newest sum, in the line's own thread.
    """

    def __init__(
        self,
        counter: ActorHandle[Any],
        total: int,
        *,
        workers: str,
        watch: Callable[[Counts], None],
    ) -> None:
        self._counter, self._total, self._workers = counter, total, workers
        self._show = watch
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._samples: deque[tuple[float, Counts]] = deque([(time.monotonic(), Counts())])
        self._first: tuple[float, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def counts(self) -> Counts:
        """The newest sums."""
        return self._samples[-1][1]

    @property
    def steady_items_s(self) -> float:
        """Items a second since the first ones were seen: the rate without the start."""
        if self._first is None:
            return 0.0
        seconds = self._samples[-1][0] - self._first[0]
        return (self.counts.items - self._first[1]) / seconds if seconds > 0 else 0.0

    def refresh(self) -> None:
        """Asks the actor once more."""
        import ray  # noqa: PLC0415 (the command line's other jobs do without)

        counts = cast(Counts, ray.get(self._counter.snapshot.remote()))
        now = time.monotonic()
        if counts.items and self._first is None:
            self._first = (now, counts.items)
            self._samples.clear()  # Starting up says nothing of the rates to come.
        self._samples.append((now, counts))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW_S:
            self._samples.popleft()

    def _watch(self) -> None:
        if not self._console.is_terminal:
            logged = time.monotonic()
            while not self._stop.wait(_LIVE_S):
                self._refresh_quietly()
                if time.monotonic() >= logged + _LOGGED_S:
                    logged = time.monotonic()
                    print(self._text(), file=sys.stderr, flush=True)
            return
        columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("starting", total=self._total)
            while not self._stop.wait(_LIVE_S):
                self._refresh_quietly()
                done = min(self.counts.items, self._total)
                bar.update(task, completed=done, description=self._rates())

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except Exception:  # The run itself reports why its cluster is gone, if it is.
            return
        self._show(self.counts)

    def _text(self) -> str:
        return f"{min(self.counts.items, self._total):,} of {self._total:,} items  {self._rates()}"

    def _rates(self) -> str:
        (then, old), (now, new) = self._samples[0], self._samples[-1]
        if not new.items:
            return f"starting {self._workers}"
        if now == then:
            return f"{new.failed:,} errors"
        seconds = now - then
        items_s, tokens_s = (new.items - old.items) / seconds, (new.tokens - old.tokens) / seconds
        left = max(self._total - new.items, 0)
        eta = _duration(left / items_s) if items_s else "?"
        return (
            f"{items_s:,.1f} items/s  {tokens_s:,.0f} tokens/s  {new.failed:,} errors  {eta} left"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
