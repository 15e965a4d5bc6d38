"""How many commits run at once: as many as it takes to keep up with the shards that are encoded."""

from __future__ import annotations

import math
from collections import deque

_SEEN = 16
# Commits at once over what is needed on the average, as neither shards nor answers come evenly.
_SPARE = 1.5


class CommitPace:
    """Sets `at_once` by how long commits take and how fast shards become whole.

    Args:
        least: Commits at once at first, and at the least.
        most: At the most: each is a process, and holds its shard's rows.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._whole: deque[float] = deque(maxlen=_SEEN + 1)
        self._took: deque[float] = deque(maxlen=_SEEN)

    def shard_is_whole(self, now: float) -> None:
        """Notes that all rows of a shard are there, at a second of any clock."""
        self._whole.append(now)

    def commit_took(self, seconds: float) -> None:
        """Notes how long a commit took, from its start to its answer."""
        self._took.append(seconds)

    @property
    def at_once(self) -> int:
        """Commits that may run now."""
        shards = len(self._whole) - 1
        if shards < 1 or not self._took:
            return self._least
        seconds = self._whole[-1] - self._whole[0]
        needed = _SPARE * sum(self._took) / len(self._took) * shards
        if needed >= self._most * seconds:
            return max(self._least, self._most)
        return max(self._least, math.ceil(needed / seconds))
