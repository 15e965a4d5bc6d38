"""What is known of a clip: how many frames, how fast, how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class VideoMetadata:
    """A clip's description, by the reference's names.

    Attributes:
        total_num_frames: Frames that the clip shows.
        fps: Frames a second, on average; None where it is not known, and then nothing can be
            sampled.
        width: Pixels, after rotation.
        height: Likewise.
        duration: Seconds. None or 0 where it is not known: the frame count and rate give it.
        video_backend: What decoded it.
        frames_indices: Frames that were chosen, counted from 0; None for all.
    """

    total_num_frames: int
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    video_backend: str | None = None
    frames_indices: Sequence[int] | None = None
