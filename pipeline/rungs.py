"""Ways in which an encoder computes on a GPU, from the fastest to the plainest.

A way is a rung. A step that fails on one (blocks do not compile, a result is off its bound, a pack
hangs) makes encoders on that GPU model use the next one. Pure decisions: no Ray, no torch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encoder import AttentionKernel
    from pipeline.config import ComputeDevice


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to compute.

    Attributes:
        compiled: Whether blocks are compiled.
        kernel: See `Glm4vVisionModel.use_attention`.
    """

    compiled: bool
    kernel: AttentionKernel

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'plain'} {self.kernel}"


# The first is where a model starts. The last is never given up: a device that fails there is
# itself at fault.
RUNGS: dict[ComputeDevice, tuple[Rung, ...]] = {
    "cuda": (
        Rung(compiled=True, kernel="varlen"),
        Rung(compiled=False, kernel="varlen"),
        Rung(compiled=False, kernel="sdpa"),
        Rung(compiled=False, kernel="math"),
    ),
    "cpu": (Rung(compiled=False, kernel="varlen"),),  # There the kernel changes nothing.
}


def next_rung(kind: ComputeDevice, rung: Rung) -> Rung | None:
    """Returns the rung below one; None if that is the last."""
    below = RUNGS[kind][RUNGS[kind].index(rung) + 1 :]
    return below[0] if below else None


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """The device that failed on a rung first, how, and what it went on with."""

    device: str
    reason: str
    instead: Rung


class Ladder:
    """Remembers the rungs on which each GPU model has failed."""

    def __init__(self) -> None:
        self._failed: defaultdict[str, dict[Rung, _Failure]] = defaultdict(dict)

    def rung(self, model: str, kind: ComputeDevice) -> Rung:
        """Returns the rung that an encoder on `model` starts on."""
        return next(r for r in RUNGS[kind] if r not in self._failed[model])

    def give_up(
        self, model: str, kind: ComputeDevice, rung: Rung, device: str, reason: str
    ) -> Rung | None:
        """Notes that `device`, a `model`, failed on a rung.

        Returns:
            The rung that it goes on with; None if that was the last one.
        """
        failed = self._failed[model]
        below = RUNGS[kind][RUNGS[kind].index(rung) + 1 :]
        found = next((r for r in below if r not in failed), None)
        if found is not None:
            failed.setdefault(rung, _Failure(device=device, reason=reason, instead=found))
        return found

    def forget(self, device: str) -> None:
        """Drops what a device has failed on: not its model was at fault, but the device."""
        for model, failed in self._failed.items():
            self._failed[model] = {r: f for r, f in failed.items() if f.device != device}

    def lines(self) -> list[str]:
        """Returns a line for each rung that a GPU model has failed on, without an end."""
        return [
            f"{model}: {failure.reason}; {failure.instead} kernels are used"
            for model, failed in self._failed.items()
            for failure in failed.values()
        ]
