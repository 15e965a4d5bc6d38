"""How far an output is: each generation by itself, and every item in its current state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline import layout
from pipeline.ahead import ahead
from pipeline.errors import StorageError, UsageError
from pipeline.location import join
from pipeline.manifest import Generation, Shard, committed, generations, shards_of
from pipeline.marker import Marker
from pipeline.states import States, newest_of, states
from pipeline.storage import storage_for


@dataclass
class GenerationStatus:
    """What is planned and what is done of one generation."""

    generation: int
    shards: int
    items: int
    shards_committed: int = 0
    embedded: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    tokens: int = 0

    @property
    def open_items(self) -> int:
        """Items without a terminal row yet."""
        return self.items - self.embedded - self.failed

    def add(self, marker: Marker) -> None:
        """Counts one committed shard."""
        self.shards_committed += 1
        self.embedded += marker.embedded
        self.failed += marker.failed
        self.errors = dict(Counter(self.errors) + Counter(marker.errors))
        self.tokens += marker.tokens


@dataclass
class Status:
    """How far an output is."""

    generations: list[GenerationStatus]
    """Oldest first; a later one supersedes what an older one says of an item."""
    items: States
    """Every item once, as the newest generation that lists it says."""


def planned(output: str) -> list[Generation]:
    """The generations of an output that must have some.

    Raises:
        UsageError: Nothing is planned there.
    """
    found = generations(output)
    if not found:
        raise UsageError(f"{output} is no patchflow output: no plan is frozen there")
    return found


def markers(output: str, shards: Iterable[str]) -> Iterator[tuple[str, Marker | None]]:
    """Each of `shards` in order, and its marker: None where that is damaged."""
    storage = storage_for(output)

    def read(shard: str) -> tuple[str, Marker | None]:
        try:
            marker = Marker.from_json(storage.read(join(output, layout.marker(shard))))
        except ValueError:
            return shard, None
        return shard, marker if marker.shard == shard else None

    return ahead(read, sorted(shards))


def marked(output: str, planned: list[Generation]) -> Iterator[tuple[Shard, Marker | None]]:
    """Every planned shard and its marker, None where it is open.

    Raises:
        StorageError: Storage failed, or a marker is damaged or belongs to no planned shard.
    """
    # Another run may have planned generations since, and have committed shards of them.
    done = {shard for shard in committed(output) if layout.generation_of(shard) < len(planned)}
    for generation in planned:
        shards = {shard.id: shard for shard in shards_of(generation, without=set())}
        for name, shard in shards.items():
            if name not in done:
                yield shard, None
        for name, marker in markers(output, shards.keys() & done):
            if marker is None:
                raise StorageError(f"{join(output, layout.marker(name))} is damaged")
            yield shards[name], marker
        done -= shards.keys()
    if done:
        place = join(output, layout.marker(min(done)))
        raise StorageError(f"{place} is of a shard that is in no manifest; `verify` tells more")


def status(output: str) -> Status:
    """The state of every generation, and of all items.

    Raises:
        UsageError: Nothing is planned there.
        StorageError: Storage failed, or a marker is damaged.
    """
    existing = planned(output)
    found = [GenerationStatus(generation=g.number, shards=g.shards, items=g.rows) for g in existing]

    def counted() -> Iterator[tuple[Shard, Marker | None]]:
        for shard, marker in marked(output, existing):
            if marker is not None:
                found[shard.generation].add(marker)
            yield shard, marker

    with newest_of(output, existing) as newest:
        return Status(generations=found, items=states(output, counted(), newest))
