"""What the doctor looks at."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Literal

from encoder import PRESETS
from pipeline.doctor.finding import first_line

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


class WrongOptionError(ValueError):
    """An option cannot be used; the line names it."""


def absolute_encoder(location: str) -> str:
    """Returns an encoder's location as every process finds it.

    Raises:
        WrongOptionError: It is neither a preset nor a checkpoint that can be read.
    """
    if location in PRESETS:
        return location
    from encoder import vision_tensors  # noqa: PLC0415 (needs fsspec)

    place = location if "://" in location else os.path.abspath(location)  # noqa: PTH100
    try:
        vision_tensors(place)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise WrongOptionError(f"--encoder {location}: {first_line(error)}") from error
    return place
