"""How far a run is: the sums of what its stages report, in one small actor.

The actor also holds the gate that bounds how many shards are under way: a shard's rows are released
once enough others are committed, so what waits in the cluster, and what a kill can cost, is bounded
by configuration. Which ones does not matter: a shard that a long clip keeps open takes one place,
and the others go on. And it knows the shard of each block, which the driver does not look into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Counts:
    """Sums over everything the stages have reported. A block that was redone counts twice.

    Seconds are by the wall's clock, those of all actors of a stage together.
    """

    items: int = 0
    """Those that the encoders are through with, failed ones among them."""
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    capacity: int = 0
    encoded_blocks: int = 0
    encode_s: float = 0.0
    """In which packs were running."""
    flop: int = 0
    """Of packs on devices whose ceiling is known."""
    ceiling_flop: float = 0.0
    """What those devices could have done in the same seconds."""
    driver_s: float = 0.0
    """CPU time of the driver, which its progress line fills in."""
    read: int = 0
    """Rows that the source has read of the manifest."""
    shards_read: int = 0
    read_s: float = 0.0
    """In which the source's tasks read and cut shards; without their waits for the gate."""
    preprocessed: int = 0
    preprocessed_blocks: int = 0
    fetch_s: float = 0.0
    """In which actors waited for storage, and for nothing else."""
    decode_s: float = 0.0
    """In which they waited for their decoder processes."""
    resize_s: float = 0.0
    """In which they worked themselves: resized and patchified, above all."""
    cpu_s: float = 0.0
    """In which they had a CPU for that; little less, where there are enough of them."""
    stills: int = 0
    """Those that became patches."""
    still_file_bytes: int = 0
    still_patch_bytes: int = 0
    committed: int = 0
    commits: int = 0
    commit_s: float = 0.0

    def add(self, other: Counts) -> None:
        """Adds up."""
        for name in _NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_plain(self) -> dict[str, Any]:
        """What is not zero, in types that Ray sends without pickling: a third of the time."""
        found = {name: value for name in _NAMES if (value := getattr(self, name))}
        return found | ({"errors": dict(self.errors)} if self.errors else {})

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Counts:
        """The inverse of `to_plain`."""
        return cls(**plain | {"errors": Counter(plain.get("errors", {}))})

    def since(self, before: Counts) -> Counts:
        """What has come on top of earlier sums."""
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in _NAMES})

    @property
    def failed(self) -> int:
        """Items that became errors."""
        return self.errors.total()

    @property
    def fill(self) -> float:
        """Share of the token budget that the packs used."""
        return self.tokens / self.capacity if self.capacity else 0.0


_NAMES = tuple(known.name for known in fields(Counts))


@dataclass(frozen=True, kw_only=True)
class StillSizes:
    """What stills became so far: sums over `items` of them."""

    items: int = 0
    file_bytes: int = 0
    patch_bytes: int = 0


class ProgressCounter:
    """The actor behind the line: sums of counts, the gate of the source, and blocks' shards."""

    def __init__(self, window: int) -> None:
        self._counts = Counts()
        self._window = window
        self._committed = 0
        self._shards: dict[str, str] = {}
        self._released: dict[str, StillSizes] = {}

    def add(self, counts: Counts) -> None:
        """Adds one call's counts, of whichever stage."""
        self._counts.add(counts)

    def snapshot(self) -> Counts:
        """The sums so far."""
        return self._counts

    def block_of(self, task: str, shard: str) -> None:
        """Notes that the block which a task of Ray makes is of `shard`."""
        self._shards[task] = shard

    def shards_of(self, tasks: Sequence[str]) -> list[str]:
        """The shards of the blocks that these tasks have made."""
        return [self._shards[task] for task in tasks]

    def commit(self, shard: str) -> None:
        """Notes that one more shard of this run is committed."""
        self._committed += 1
        self._shards = {task: other for task, other in self._shards.items() if other != shard}
        self._released.pop(shard, None)

    def release(self, position: int, shard: str) -> StillSizes | None:
        """Lets a shard be read, unless enough others are under way.

        Args:
            position: Its place among the run's shards.
            shard: Its id.

        Returns:
            What its blocks are to be sized by: the same each time, so that a source task that Ray
            repeats makes the same blocks. None if the shard has to wait.
        """
        if position >= self._committed + self._window:
            return None
        counts = self._counts
        now = StillSizes(
            items=counts.stills,
            file_bytes=counts.still_file_bytes,
            patch_bytes=counts.still_patch_bytes,
        )
        return self._released.setdefault(shard, now)
