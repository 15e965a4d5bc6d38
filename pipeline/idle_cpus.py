"""Whether preprocessing leaves CPUs idle, which an encoder on a CPU may use then."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.progress import Counts

# Blocks that must end before it is told how busy preprocessing is: it is counted at their ends.
_LOOK_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How encoders share the CPUs of one machine with preprocessing.

    Attributes:
        threads: Of an encoder, while CPUs are idle; one otherwise.
        encoders: Actors that encode.
        items: All of the run's.
    """

    threads: int
    encoders: int
    items: int


class IdleCpus:
    """Looks at a run's counts for one encoder.

    CPUs are idle once all is preprocessed. They are as well if preprocessing is held up, as
    encoders are behind: each of them has a block waiting for it, and of the CPUs that they could
    have, preprocessing is at work, by the wall's clock, for less than half. That ends when no block
    waits. A block that was redone counts twice, which may cost time, and nothing else.
    """

    def __init__(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._begun: tuple[float, Counts] | None = None
        self._idle = False

    def are_there(self, now: float, counts: Counts) -> bool:
        """Takes the newest sums: those of blocks in encoders' hands are not among the encoded.

        Args:
            now: Seconds on any clock.
            counts: Of the whole run.
        """
        encoders = self._sharing.encoders
        waiting = counts.preprocessed_blocks - counts.encoded_blocks - encoders
        left = self._are_left(now, counts)
        if counts.preprocessed >= self._sharing.items:
            self._idle = True
        elif waiting < 1:
            self._idle = False
        elif waiting >= encoders and left:
            self._idle = True
        return self._idle

    def _are_left(self, now: float, counts: Counts) -> bool:
        """Whether preprocessing needed few CPUs since the last look, where that can be told."""
        then, before = self._begun or (now, counts)
        new = counts.since(before)
        if self._begun is not None and new.preprocessed_blocks < _LOOK_BLOCKS:
            return False
        self._begun = now, counts
        cpus = (self._sharing.threads - 1) * self._sharing.encoders
        return new.decode_s + new.resize_s < (now - then) * cpus / 2
