"""Lines about devices and encoders for the user, whom an encoder's own output does not reach."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from pipeline.gpus import warn
from pipeline.progress import Counts

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class Remarks:
    """Prints each line once, and keeps those that are true at the end.

    Args:
        notes: The actor that has them.
        kept: Those of earlier passes; this pass's are added, and removed when they are withdrawn.
    """

    def __init__(self, notes: ActorHandle[Any], kept: list[str]) -> None:
        self._notes, self._kept = notes, kept
        self._earlier = list(kept)
        self._printed = set(kept)

    def watch(self, counts: Counts) -> None:
        """Prints what is new."""
        # The run itself reports why its cluster is gone, if it is; and a terminal may be gone.
        with suppress(ray.exceptions.RayError, OSError, ValueError):
            lines: list[str] = ray.get(self._notes.remarks.remote())
            self._kept[:] = dict.fromkeys([*self._earlier, *lines])
            for line in lines:
                if line not in self._printed:
                    self._printed.add(line)
                    warn(line)
