"""What stages report to, and the actors that the sums are shared out over."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.progress import Counts
from pipeline.workers import Workers


@dataclass
class Listener:
    """Stands for the progress actor's handle."""

    calls: list[Counts] = field(default_factory=list)

    @property
    def add(self) -> Listener:
        return self

    def remote(self, counts: Counts) -> None:
        self.calls.append(counts)


def workers(*, preprocess: int = 1, encode: int = 1, gpus: float = 0.0) -> Workers:
    """Actors of a run that only sums are done with."""
    return Workers(
        preprocess=preprocess,
        encode=encode,
        preprocess_cpus=1.0,
        encode_cpus=1.0,
        encode_gpus=gpus,
        preprocess_bytes=1,
        encode_bytes=1,
        most_threads=1,
        commits=2 if gpus else 1,
        most_commits=2,
    )
