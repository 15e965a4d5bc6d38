"""Deadlines of what may hang on a GPU.

A call of CUDA cannot be interrupted: all that is left is to end the process, from another thread.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoder import Glm4vVisionConfig

_TICK_S = 1.0
# A pack may take so many times what it should, and at least so long.
_FACTOR = 20.0
LEAST_S = 60.0
# A pack whose speed is not known yet, and anything that may compile.
MOST_S = 600.0


@dataclass
class _Limit:
    """What is under way, and the seconds that are left to it."""

    name: str
    allowed_s: float
    left_s: float


class Watchdog:
    """Watches what is under way, in a thread of its own.

    Args:
        expired: Is called once, in that thread, with a line on the first thing past its deadline.
    """

    def __init__(self, expired: Callable[[str], object]) -> None:
        self._expired: Callable[[str], object] | None = expired
        self._limits: dict[int, _Limit] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the thread, which ends with the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, name: str, seconds: float) -> int:
        """Notes that something is under way, which may take so long.

        Returns:
            The number to end it with.
        """
        number = next(self._numbers)
        with self._lock:
            self._limits[number] = _Limit(name, seconds, seconds)
        return number

    def end(self, number: int) -> None:
        """Notes that something is done."""
        with self._lock:
            self._limits.pop(number, None)

    @contextmanager
    def limit(self, name: str, seconds: float) -> Iterator[None]:
        """Limits what is done inside."""
        number = self.begin(name, seconds)
        try:
            yield
        finally:
            self.end(number)

    def advance(self, seconds: float) -> None:
        """Lets time pass for all that is under way."""
        with self._lock:
            for limit in self._limits.values():
                limit.left_s -= seconds
            past = next((limit for limit in self._limits.values() if limit.left_s <= 0), None)
            if past is None or self._expired is None:
                return
            expired, self._expired = self._expired, None
        expired(f"{past.name} hangs: past its deadline of {past.allowed_s:.0f} s")

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            # Time in which this thread did not run either, as in a process that was stopped, is
            # no sign of a hang.
            self.advance(min(now - last, 2 * _TICK_S))
            last = now


class PackDeadlines:
    """Gives packs deadlines: a multiple of what they should take, at the speed of the fastest.

    Args:
        watchdog: Watches them.
        config: The encoder's.

    Attributes:
        least_s: The shortest deadline, in seconds.
    """

    def __init__(self, watchdog: Watchdog, config: Glm4vVisionConfig) -> None:
        self._watchdog = watchdog
        self._config = config
        self.least_s = LEAST_S
        self._flop: dict[int, int] = {}  # Of each pack that is under way.
        self._flop_s = 0.0  # Of the fastest pack: small ones do not show what a device can do.
        self._lock = threading.Lock()

    def begin(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Notes that a pack is started; the device does those before it first.

        Args:
            sizes: `(h, w)` a segment, in patches.

        Returns:
            The number to end it with.
        """
        from encoder import forward_flop  # noqa: PLC0415 (only the actor imports torch)

        flop = forward_flop(self._config, [(1, height, width) for height, width in sizes])
        with self._lock:
            allowed_s = MOST_S
            if self._flop_s:
                expected_s = (flop + sum(self._flop.values())) / self._flop_s
                allowed_s = max(self.least_s, _FACTOR * expected_s)
            number = self._watchdog.begin(f"a pack of {len(sizes)} segments", allowed_s)
            self._flop[number] = flop
        return number

    def end(self, number: int, seconds: float | None) -> None:
        """Notes that a pack is done, in so many seconds of the device; None if it failed."""
        self._watchdog.end(number)
        with self._lock:
            flop = self._flop.pop(number)
            if seconds:
                self._flop_s = max(self._flop_s, flop / seconds)

    def start_over(self) -> None:
        """Forgets the speed of packs before: those of the start load kernels, and are blank."""
        with self._lock:
            self._flop_s = 0.0
