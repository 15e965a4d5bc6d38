"""Whether preprocessing leaves CPUs idle, which an encoder on a CPU may use then."""

from __future__ import annotations

from pipeline.progress import Counts

# Blocks' worth of time that preprocessing is looked at: it is counted when a block ends.
_LOOK_BLOCKS = 3


class IdleCpus:
    """Looks at a run's counts for one encoder.

    CPUs are idle once all is preprocessed. They are as well if preprocessing is held up, as
    encoders are behind: it works for less than half of what it might, and each encoder has a block
    waiting for it. That ends when no block waits.

    Args:
        items: All of the run's.
        encoders: Actors that encode.
        cpus: Those that preprocessing has beside encoders of one thread each.
        now: Seconds on any clock.
    """

    def __init__(self, *, items: int, encoders: int, cpus: int, now: float) -> None:
        self._items, self._encoders, self._cpus = items, encoders, cpus
        self._then, self._before = now, Counts()
        self._idle = False

    def are_there(self, now: float, counts: Counts) -> bool:
        """Takes the newest sums, those of blocks in encoders' hands not among what is encoded."""
        waiting = counts.preprocessed_blocks - counts.encoded_blocks - self._encoders
        if counts.preprocessed >= self._items:
            self._idle = True
        elif waiting < 1:
            self._idle = False
        elif waiting >= self._encoders and self._are_left(now, counts):
            self._idle = True
        return self._idle

    def _are_left(self, now: float, counts: Counts) -> bool:
        block_s = (counts.fetch_s + counts.decode_s + counts.resize_s) / counts.preprocessed_blocks
        seconds = now - self._then
        if seconds < _LOOK_BLOCKS * block_s:
            return False
        new = counts.since(self._before)
        self._then, self._before = now, counts
        return (new.decode_s + new.resize_s) / seconds < self._cpus / 2
