"""How far an output is, from its manifests and markers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline import layout
from pipeline.errors import StorageError, UsageError
from pipeline.location import join
from pipeline.manifest import Generation, committed, generations
from pipeline.marker import Marker
from pipeline.storage import storage_for

# Markers are small and many: requests in flight hide an object store's latency.
_READERS = 16


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


def planned(output: str) -> list[Generation]:
    """The generations of an output that must have some.

    Raises:
        UsageError: Nothing is planned there.
    """
    found = generations(output)
    if not found:
        raise UsageError(f"{output} is no patchflow output: no plan is frozen there")
    return found


def markers(output: str, shards: set[str]) -> Iterator[tuple[str, Marker | None]]:
    """Each of `shards` in order, and its marker: None where that is damaged."""
    storage = storage_for(output)

    def read(shard: str) -> tuple[str, Marker | None]:
        try:
            marker = Marker.from_json(storage.read(join(output, layout.marker(shard))))
        except ValueError:
            return shard, None
        return shard, marker if marker.shard == shard else None

    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read, sorted(shards))


def status(output: str) -> list[GenerationStatus]:
    """The state of every generation, oldest first.

    Raises:
        UsageError: Nothing is planned there.
        StorageError: Storage failed, or a marker is damaged.
    """
    found = [
        GenerationStatus(generation=g.number, shards=g.shards, items=g.rows)
        for g in planned(output)
    ]
    for shard, marker in markers(output, committed(output)):
        if marker is None:
            raise StorageError(f"{join(output, layout.marker(shard))} is damaged")
        parsed = layout.parse_shard(shard)
        assert parsed is not None
        state = found[parsed[0]]
        state.shards_committed += 1
        state.embedded += marker.embedded
        state.failed += marker.failed
        state.errors = dict(Counter(state.errors) + Counter(marker.errors))
        state.tokens += marker.tokens
    return found
