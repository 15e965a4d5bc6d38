"""How far a run is: the sums of what its stages report, in one small actor.

The actor also holds the gate that bounds how many shards are under way: a shard's rows are released
once enough others are committed, so what waits in the cluster, and what a kill can cost, is bounded
by configuration. Which ones does not matter: a shard that a long clip keeps open takes one place,
and the others go on. And it knows whose the blocks are, which the driver does not look into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.actor import ActorHandle


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
    committed: int = 0
    commits: int = 0
    commit_s: float = 0.0

    def add(self, other: Counts) -> None:
        """Adds up."""
        for name in _NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

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


class ProgressCounter:
    """The actor behind the line: sums of counts, the gate of the source, and whose blocks are."""

    def __init__(self, window: int) -> None:
        self._counts = Counts()
        self._window = window
        self._committed = 0
        self._shards: dict[str, str] = {}

    def add(self, counts: Counts) -> None:
        """Adds one call's counts, of whichever stage."""
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


def tell_shard(progress: ActorHandle[Any], shard: str) -> Callable[[], object]:
    """Tells whose block the calling task makes.

    Returns:
        What waits until that is noted, as it is to be before the block is there.
    """
    import ray  # noqa: PLC0415 (the command line's other jobs do without)

    task = ray.get_runtime_context().get_task_id()
    return partial(ray.get, progress.made.remote(task, shard))
