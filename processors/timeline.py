"""When each frame of a clip is shown, and which one is on display at a given time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """The times of a clip's frames, counted from the first one.

    A caller's index is a number of frames at the average rate. Where the rate is constant, index
    ``i`` is the ``i``-th frame; where it varies, it is the frame on display ``i / fps`` seconds
    from the start. The rate is constant where no frame is half a frame's time or more off
    ``i / fps``.

    Attributes:
        seconds: float64 ``[num_frames]``, ascending from 0.
        tick_s: What the times were rounded to, in seconds.
        fps: Frames a second, on average; None where nothing tells.
    """

    seconds: NDArray[np.float64]
    tick_s: float
    fps: float | None

    @property
    def num_frames(self) -> int:
        """How many frames the clip shows."""
        return len(self.seconds)

    @property
    def duration_s(self) -> float | None:
        """The frame count over the rate: the last frame lasts as long as frames do on average."""
        return self.num_frames / self.fps if self.fps else None

    def positions(self, indices: Sequence[int]) -> list[int]:
        """Which frames the indices stand for, counted from 0 in the order of display.

        Raises:
            ValueError: If an index is no frame's, or they do not ascend.
        """
        ends = (0, *indices, self.num_frames - 1)
        if any(later < earlier for earlier, later in pairwise(ends)):
            raise ValueError(
                f"indices must ascend within 0..{self.num_frames - 1}, got {list(indices)}"
            )
        if self.fps is None or _is_constant(self.seconds, self.fps):
            return [int(index) for index in indices]
        # A time that was rounded up to the next tick must not put off its frame to the next index.
        wanted = np.asarray(indices) / self.fps + self.tick_s / 2
        found = np.searchsorted(self.seconds, wanted, side="right") - 1
        return [int(position) for position in found]


def timeline_of(
    ticks: NDArray[np.int64], *, tick_s: Fraction, last: int, stated_fps: Fraction | None
) -> Timeline:
    """The timeline of frames with timestamps.

    The rate is the one that the file states where it is constant and the frames keep to it, and
    else their number over the time from the first frame's start to the last one's end.

    Args:
        ticks: int64 ``[num_frames]``, ascending.
        tick_s: Seconds a tick.
        last: Ticks that the last frame lasts; 0 where unknown, and then as long as the others do.
        stated_fps: What the file says.
    """
    # Differences of wild timestamps may overflow int64, and need no more than float64's 53 bits.
    passed = ticks.astype(np.float64) - float(ticks[0])
    seconds = passed * tick_s.numerator / tick_s.denominator
    if stated_fps and _is_constant(seconds, float(stated_fps)):
        return Timeline(seconds=seconds, tick_s=float(tick_s), fps=float(stated_fps))
    span_s = float(seconds[-1])
    span_s += last * float(tick_s) if last > 0 else span_s / max(1, len(ticks) - 1)
    fps = len(ticks) / span_s if span_s else None
    return Timeline(seconds=seconds, tick_s=float(tick_s), fps=fps)


def timeline_at_rate(num_frames: int, fps: Fraction | None) -> Timeline:
    """The timeline of frames that have no times of their own."""
    frame_s = 1 / float(fps) if fps else 0.0
    seconds = np.arange(num_frames, dtype=np.float64) * frame_s
    return Timeline(seconds=seconds, tick_s=frame_s, fps=float(fps) if fps else None)


def _is_constant(seconds: NDArray[np.float64], fps: float) -> bool:
    drift = np.abs(seconds * fps - np.arange(len(seconds)))
    return bool((drift < 0.5).all())
