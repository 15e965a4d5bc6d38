"""What the doctor looks at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the doctor looks at; every step gets it.

    Attributes:
        inputs: Canonical locations of which one object each is read.
        output: Canonical location where one object is written, read, listed and deleted.
        encoder: A preset or a checkpoint; None takes the shape of `large` on a GPU and of `tiny`
            on a CPU.
        device: `auto` takes GPUs where there are any.
        ray_gpus: How many GPUs Ray counts on this node; None outside a cluster.
    """

    inputs: tuple[str, ...] = ()
    output: str | None = None
    encoder: str | None = None
    device: Device = "auto"
    ray_gpus: float | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Options:
        """Reads what `to_json` wrote."""
        found = json.loads(line)
        return cls(**found | {"inputs": tuple(found["inputs"])})
