"""What one run did, added up from the markers of its shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.marker import Marker
from pipeline.origin import Encoder
from pipeline.stages import Figures


@dataclass
class Summary:
    """What one run did."""

    output: str
    run: str
    """A name of this run that no other has."""
    encoder: Encoder
    scope: str
    """What of the output the run was to do, in words."""
    shards: int = 0
    shards_elsewhere: int = 0
    """Those of `shards` that another run committed meanwhile."""
    items: int = 0
    embedded: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    """What was said of encoders and their devices, a line each."""
    tokens: int = 0
    fill: float = 0.0
    seconds: float = 0.0
    steady_items_s: float = 0.0
    """Items a second from the first item on, without the start."""
    stages: Figures | None = None
    """From the first items on, for as long as there were others to preprocess; None if never."""

    @property
    def failed(self) -> int:
        """Items that went to `errors/`."""
        return self.errors.total()

    def add(self, marker: Marker) -> None:
        """Counts one committed shard."""
        self.shards += 1
        self.shards_elsewhere += marker.run != self.run
        self.items += marker.rows
        self.embedded += marker.embedded
        self.errors.update(marker.errors)
        self.tokens += marker.tokens
