"""The devices of a run: how often each has failed, and which of them are set aside.

Pure decisions: no Ray, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import STAY_OPEN

# Ends of processes in a row on one device, nothing embedded in between, that set it aside. More
# than an item without company, which ends `2 * MOST_DEATHS`: those that are left are for the
# device itself to fail with, before that item is found guilty. Several guilty items of one block
# without any other look like a sick device: it is rather set aside than the innocent blamed.
MOST_ENDS = 6
# Of a run's devices, the largest share that it does without. One it always does without, as long
# as another works.
_MOST_SET_ASIDE = 0.25


@dataclass
class _Device:
    """One device.

    Attributes:
        ends: Processes that ended there since something was embedded there.
        reason: Why the last of them did.
        set_aside: Why no encoder uses it any more, in a line; empty while encoders do.
    """

    ends: int = 0
    reason: str = ""
    set_aside: str = ""


class Devices:
    """Counts the ends of processes by device.

    Args:
        expected: How many devices a run is to have; those that have no encoder yet count too.
    """

    def __init__(self, expected: int = 1) -> None:
        self._expected = expected
        self._devices: dict[str, _Device] = {}

    def started(self, device: str) -> None:
        """Notes that a process starts on a device."""
        self._devices.setdefault(device, _Device())

    def ended(self, device: str, reason: str) -> None:
        """Notes that a process ended on a device."""
        found = self._devices[device]
        found.ends += 1
        found.reason = reason
        if found.ends >= MOST_ENDS:
            times = f"{found.ends} times in a row on {device}"
            self.set_aside(device, f"the encoder's process ended {times}: {reason}; {STAY_OPEN}")

    def embedded(self, device: str) -> None:
        """Notes that a device has embedded something."""
        self._devices[device].ends = 0

    def ends(self, device: str) -> int:
        """Returns the ends on a device since something was embedded there."""
        return self._devices[device].ends

    def set_aside(self, device: str, why: str) -> None:
        """Lets no process use a device any more; the first reason stays."""
        found = self._devices[device]
        found.set_aside = found.set_aside or why

    def is_set_aside(self, device: str) -> bool:
        """Returns whether no process should use a device."""
        return bool(self._devices[device].set_aside)

    def failure(self) -> str | None:
        """Returns why the run cannot go on, in a line; None if it can."""
        gone = [found.set_aside for found in self._devices.values() if found.set_aside]
        devices = max(self._expected, len(self._devices))
        if len(gone) < devices and len(gone) <= max(1, _MOST_SET_ASIDE * devices):
            return None
        if devices == 1:
            return gone[0]
        return f"{gone[-1]} ({len(gone)} of {devices} devices are set aside)"

    def lines(self) -> list[str]:
        """Returns a line for each device that is set aside, without an end."""
        return [
            f"{device} is set aside: {found.set_aside.partition(f'; {STAY_OPEN}')[0]}"
            for device, found in self._devices.items()
            if found.set_aside
        ]
