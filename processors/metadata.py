"""What is known of a clip: how many frames, how fast, how large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields


@dataclass(frozen=True)
class VideoMetadata:
    """A clip's description, by the names of transformers' class in ``video_utils.py``.

    All but the first two go by keyword: in transformers the third is the width.

    >>> VideoMetadata(16, 30.0) == VideoMetadata(fps=30.0, total_num_frames=16)
    True

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
    _: KW_ONLY
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    video_backend: str | None = None
    frames_indices: Sequence[int] | None = None

    @classmethod
    def parse(cls, value: object) -> VideoMetadata:
        """Takes metadata as such or as a mapping, which is left as it is.

        Raises:
            ValueError: If it is neither, lacks ``total_num_frames``, or has a key of another name.
        """
        if isinstance(value, VideoMetadata):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(
                f"metadata are a VideoMetadata or a mapping, got {type(value).__name__}"
            )
        names = {field.name for field in fields(cls)}
        if "total_num_frames" not in value or not value.keys() <= names:
            optional = ", ".join(sorted(names - {"total_num_frames"}))
            raise ValueError(
                f"metadata need total_num_frames, and may have {optional}; "
                f"got {', '.join(map(str, value))}"
            )
        return cls(**value)

    @classmethod
    def one_each(cls, value: object, num_clips: int) -> list[VideoMetadata | None]:
        """Takes the metadata of so many clips: one or a list of what ``parse`` takes, or of None.

        Raises:
            ValueError: If there are more or fewer, or on what ``parse`` refuses.
        """
        if value is None:
            return [None] * num_clips
        given = value if isinstance(value, (list, tuple)) else [value]
        if len(given) != num_clips:
            raise ValueError(
                f"got {num_clips} clips and {len(given)} video_metadata; pass one for each clip"
            )
        return [None if item is None else cls.parse(item) for item in given]
