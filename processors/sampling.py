"""Which frames of a clip its model family looks at.

The reference's rules, to the last rounding, at a cost that depends on the frames chosen and not on
those that the clip has or claims to have. Rates and durations of other types count as floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Final, Literal, TypeGuard, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from processors.metadata import VideoMetadata

VideoFamily = Literal["glmga", "glm46v", "glm4v"]

_DEFAULTS: Final[dict[VideoFamily, dict[str, float]]] = {
    "glmga": {"fps": 2.0, "max_frames": 640},
    "glm46v": {"max_frames": 640},
    "glm4v": {"fps": 2.0, "max_duration": 300.0},
}

# Of glm46v: temporal patches a second, for clips of up to so many seconds; longer ones count as the
# longest.
_SCHEDULE: Final = ((30.0, 3.0), (300.0, 1.0), (2400.0, 0.5))

# All counts up to here are exact as floating point, which the rules are written in.
_MOST_FRAMES: Final = 2**53


@dataclass(frozen=True, kw_only=True)
class VideoSampling:
    """How frames are chosen, by the rule of a model family.

    * ``glmga``: ``fps`` a second; where that is over ``max_frames``, so many, spread evenly.
    * ``glm46v``: a rate that falls as clips get longer, from 6 a second (up to 30 s) over 2 (up to
      300 s) to 1, with two frames a patch; ``max_frames`` as for glmga.
    * ``glm4v``: ``fps`` a second of clips of up to ``max_duration``; of longer ones
      ``max_duration * fps``, spread evenly.

    Where the reference gives no frame, and for glmga where it gives but one, as it does for clips
    of up to about a second, the first and the last frame are taken instead.

    Args:
        family: Whose rule it is.
        fps: Frames a second; None for the family's 2. Not for glm46v, which has its schedule.
        max_frames: Most frames; None for the family's 640, for glm4v as many as its rule gives.
        max_duration: Seconds, of glm4v alone; None for its 300.
            Each of the three is the family's own afterwards where it was None and there is one.
        temporal_patch_size: Frames in a patch, by which glm46v's schedule goes.

    Raises:
        ValueError: On a value that is none of the option's or that the family has no use for.
    """

    family: VideoFamily = "glmga"
    fps: float | None = None
    max_frames: int | None = None
    max_duration: float | None = None
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        if self.family not in get_args(VideoFamily):
            families = ", ".join(get_args(VideoFamily))
            raise ValueError(f"family must be one of {families}; got {self.family!r}")
        for name in ("fps", "max_duration"):
            value = getattr(self, name)
            if value is not None and not (_is_finite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name in ("max_frames", "temporal_patch_size"):
            value = getattr(self, name)
            if value is not None and not (_is_integer(value) and value >= 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.family == "glm46v" and self.fps is not None:
            raise ValueError(
                f"fps={self.fps!r} has no effect on glm46v, whose rate goes by the clip's "
                "duration; leave it out, or limit max_frames"
            )
        if self.family != "glm4v" and self.max_duration is not None:
            raise ValueError(
                f"max_duration={self.max_duration!r} is an option of glm4v, not of {self.family}; "
                "use max_frames"
            )

        # Frozen, so the defaults are settled behind its back.
        for name, value in _DEFAULTS[self.family].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def most_frames(self) -> int:
        """The most indices that there are of a clip, whatever its metadata say."""
        most = self.max_frames
        if most is None:
            assert self.max_duration and self.fps
            most = int(min(self.max_duration * self.fps, _MOST_FRAMES))
        return max(2, most + most % 2)

    def indices(self, metadata: VideoMetadata) -> NDArray[np.int64]:
        """Chooses the frames of a clip.

        Args:
            metadata: ``total_num_frames``, ``fps`` and, where known, ``duration`` count.

        Returns:
            Indices ``[n]`` from 0, ascending and distinct, but for the last one, which is there
            twice where their number would be odd. Without that one there are at most
            ``max_frames``, or for glm4v ``max_duration * fps``, whatever the metadata say.

        Raises:
            ValueError: If the metadata describe no clip, showing the value.
        """
        clip = _clip(metadata)
        if self.family == "glmga":
            assert self.fps and self.max_frames
            frames = _sample_glmga(clip, self.fps, self.max_frames)
        elif self.family == "glm46v":
            assert self.max_frames
            frames = _sample_glm46v(clip, self.max_frames, self.temporal_patch_size)
        else:
            assert self.fps and self.max_duration
            frames = _sample_glm4v(clip, self.fps, self.max_duration, self.max_frames)
        distinct = np.unique(frames)
        if len(distinct) < (2 if self.family == "glmga" else 1):
            distinct = np.unique([0, clip.total - 1])[: self.max_frames]
        return np.append(distinct, distinct[-1:]) if len(distinct) % 2 else distinct


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """What the rules go by."""

    total: int
    fps: float
    duration_s: float


def _clip(metadata: VideoMetadata) -> _Clip:
    total, fps, duration = metadata.total_num_frames, metadata.fps, metadata.duration
    if not _is_integer(total) or not 1 <= total <= _MOST_FRAMES:
        raise ValueError(f"total_num_frames must be an integer of at least 1, got {total!r}")
    # The last condition refuses rates so small that the clip would never end.
    if not _is_finite(fps) or fps <= 0 or not math.isfinite(total / float(fps)):
        raise ValueError(
            f"sampling needs the clip's frame rate: fps must be a positive number, got {fps!r}"
        )
    if duration is not None and (not _is_finite(duration) or duration < 0):
        raise ValueError(f"duration must be a number of seconds, or None; got {duration!r}")
    seconds = float(duration or round((total - 1) / float(fps)) + 1)
    return _Clip(total=int(total), fps=float(fps), duration_s=seconds)


def _sample_glmga(clip: _Clip, fps: float, max_frames: int) -> NDArray[np.int64]:
    wanted = int(min(clip.duration_s * fps, max_frames))
    step_s = 1 / fps
    return _by_time(clip, wanted, step_s=step_s, end_s=clip.duration_s - step_s)


def _sample_glm46v(clip: _Clip, max_frames: int, temporal_patch_size: int) -> NDArray[np.int64]:
    counted_s = min(clip.duration_s, _SCHEDULE[-1][0])
    rate = next(rate for longest_s, rate in _SCHEDULE if counted_s <= longest_s)
    wanted = int(min(counted_s * rate * temporal_patch_size, max_frames))
    step_s = 1 / (temporal_patch_size * rate)
    return _by_time(clip, wanted, step_s=step_s, end_s=int(clip.duration_s))


def _sample_glm4v(
    clip: _Clip, fps: float, max_duration_s: float, max_frames: int | None
) -> NDArray[np.int64]:
    last = clip.total - 1
    with np.errstate(over="ignore"):  # Beyond the last frame, infinity is as good as any number.
        if clip.duration_s <= max_duration_s:
            positions = _positions_at(clip, fps)
        elif (count := int(min(max_duration_s * fps, clip.total))) == clip.total:
            positions = np.arange(clip.total, dtype=np.float64)
        else:
            positions = np.linspace(0, clip.duration_s, count) * clip.fps
        frames = np.unique(np.minimum(np.ceil(positions), last).astype(np.int64))
    if max_frames is not None and len(frames) > max_frames:
        return np.linspace(0, last, max_frames, dtype=np.int64)
    return frames


def _positions_at(clip: _Clip, fps: float) -> NDArray[np.float64]:
    """Finds how many frames into the clip the instants are, but for those that add no frame."""
    last = clip.total - 1
    instants = max(float(np.floor(clip.duration_s * fps)), 1.0)
    if fps >= 2 * clip.fps:  # Each frame is some instant's, however they are rounded.
        last = math.ceil(min((instants - 1) * clip.fps / fps, last))
        return np.arange(last + 1, dtype=np.float64)
    until_last = last * (fps / clip.fps) + 2
    return np.arange(int(min(instants, until_last)), dtype=np.float64) * clip.fps / fps


def _by_time(clip: _Clip, wanted: int, *, step_s: float, end_s: float) -> NDArray[np.int64]:
    """Takes a frame every ``step_s``, or ``wanted`` evenly where those are more or fewer."""
    if clip.total < wanted:
        return np.arange(clip.total)
    frames = _scan(clip, wanted + 1, step_s=step_s, end_s=end_s)
    if len(frames) == wanted:
        return np.array(frames, np.int64)
    last = frames[-1] if len(frames) < wanted else clip.total - 1
    return np.linspace(0, last, wanted, dtype=np.int64)


def _scan(clip: _Clip, limit: int, *, step_s: float, end_s: float) -> list[int]:
    """Finds, for one instant after another, the first frame not taken yet that is not before it.

    The sum of steps and the frames' times are rounded as in the reference, hence the loop; it goes
    over frames taken, ``limit`` at most, where the reference goes over all that the clip has.
    """
    frame_s = 1 / clip.fps
    frames: list[int] = []
    due_s = 0.0
    while len(frames) < limit:
        first = frames[-1] + 1 if frames else 0
        # Near enough, and then exact: times ascend with the frames.
        frame = max(first, int(min(due_s / frame_s, clip.total)))
        while frame > first and (frame - 1) * frame_s >= due_s:
            frame -= 1
        while frame < clip.total and frame * frame_s < due_s:
            frame += 1
        if frame >= clip.total:
            break
        frames.append(frame)
        due_s += step_s
        if due_s >= end_s:
            break
    return frames


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
