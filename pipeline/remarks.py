"""What encoders have to say: their own output does not reach the user."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from pipeline.gpus import warn
from pipeline.progress import Counts

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class Remarks:
    """Prints each line once.

    Args:
        notes: The actor that has them.
        printed: Those that have been printed; new ones are added.
    """

    def __init__(self, notes: ActorHandle[Any], printed: list[str]) -> None:
        self._notes, self._printed = notes, printed

    def watch(self, counts: Counts) -> None:
        """Prints what is new."""
        # The run itself reports why its cluster is gone, if it is; and a terminal may be gone.
        with suppress(ray.exceptions.RayError, OSError, ValueError):
            lines: list[str] = ray.get(self._notes.remarks.remote())
            for line in lines:
                if line not in self._printed:
                    self._printed.append(line)
                    warn(line)
