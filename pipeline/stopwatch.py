"""What the time of actors and devices goes into; measured where it passes, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from pipeline.progress import Counts

T = TypeVar("T")
What = Literal["fetch_s", "decode_s"]


class Stopwatch:
    """What a preprocessing actor's time goes into, whose calls take turns after a first wait.

    A call that waits for its first file while it is another's turn costs the actor nothing.
    """

    def __init__(self) -> None:
        self._counts = Counts()
        self._free_since = time.monotonic()
        self._paused_s = 0.0

    @contextmanager
    def turn(self, began: float, came: float) -> Iterator[Counts]:
        """One call's turn, for one thread at a time; its counts are complete when it has ended.

        Args:
            began: When the call began to wait for its first file, by `time.monotonic`.
            came: When that was there.
        """
        before_s = max(0.0, came - max(began, self._free_since))
        self._counts = counts = Counts()
        self._paused_s = 0.0
        start, cpu_start = time.monotonic(), time.thread_time()
        try:
            yield counts
        finally:
            self._free_since = time.monotonic()
            counts.cpu_s += time.thread_time() - cpu_start
            at_work_s = self._free_since - start - self._paused_s
            counts.resize_s = at_work_s - counts.fetch_s - counts.decode_s
            counts.fetch_s += before_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A while of a turn that is no work of the stage's, such as handing over a block."""
        start, cpu_start = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - start
            self._counts.cpu_s -= time.thread_time() - cpu_start

    def waiting(self, what: What) -> _Wait:
        """A wait within a turn."""
        return _Wait(self._counts, what)

    def over(self, what: What, values: Iterable[T]) -> Iterator[T]:
        """`values`, each of which is waited for."""
        iterator = iter(values)
        while True:
            with self.waiting(what):
                try:
                    value = next(iterator)
                except StopIteration:
                    return
            yield value


class _Wait:
    """A wait, of which there are five a picture: a generator would take three times as long.

    What it has of a CPU is no part of the actor's own work: it may be reading the file.
    """

    def __init__(self, counts: Counts, what: What) -> None:
        self._counts, self._what = counts, what

    def __enter__(self) -> None:
        self._start, self._cpu_start = time.monotonic(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._counts.cpu_s -= time.thread_time() - self._cpu_start
        waited_s = time.monotonic() - self._start
        setattr(self._counts, self._what, getattr(self._counts, self._what) + waited_s)
