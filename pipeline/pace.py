"""How fast a run is now, and was while all of its stages were at work: counts over time."""

from __future__ import annotations

from collections import deque

from pipeline.progress import Counts
from pipeline.stages import Figures
from pipeline.workers import Workers

# Rates are those of the last minute, so that the time left follows what happens now.
_WINDOW_S = 60.0


class Pace:
    """Sums of counts as they were seen, each at its second; begins at `began`."""

    def __init__(self, total: int, workers: Workers, *, began: float) -> None:
        self._total, self._workers = total, workers
        self._samples: deque[tuple[float, Counts]] = deque([(began, Counts())])
        self._first: tuple[float, Counts] | None = None
        self._fed: tuple[float, Counts] | None = None

    def add(self, now: float, counts: Counts) -> None:
        """Takes the newest sums."""
        if counts.items and self._first is None:
            self._first = (now, counts)
            self._samples.clear()  # Starting up says nothing of the rates to come.
        self._samples.append((now, counts))
        while len(self._samples) > 2 and self._samples[0][0] < now - _WINDOW_S:
            self._samples.popleft()
        if self._first is not None and counts.preprocessed < self._total:
            self._fed = (now, counts)

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
        return (self.counts.items - self._first[1].items) / seconds if seconds > 0 else 0.0

    @property
    def recent(self) -> Figures | None:
        """Those of the last minute; None before there is anything to see."""
        return self._between(self._samples[0], self._samples[-1]) if self._first else None

    @property
    def steady(self) -> Figures | None:
        """Those from the first items on, for as long as there were others to preprocess."""
        return self._between(self._first, self._fed) if self._first and self._fed else None

    def _between(self, then: tuple[float, Counts], now: tuple[float, Counts]) -> Figures | None:
        seconds = now[0] - then[0]
        if seconds <= 0:
            return None
        return Figures.of(now[1], then[1], seconds, self._workers)
