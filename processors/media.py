"""A file of any kind, by its content: one picture, or the chosen frames of a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from processors.decode import DEFAULT_MAX_PIXELS, decode_image
from processors.formats import sniff_image_format
from processors.sampling import VideoSampling
from processors.video_reader import VideoReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """What is decoded of a file.

    Attributes:
        max_pixels: Largest ``width * height`` of a picture or a frame.
        sampling: Which frames of a clip are wanted; None refuses clips.
        animated: What GIF, WebP and APNG files with several frames count as.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    sampling: VideoSampling | None = None
    animated: MediaKind = "image"


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a file holds, known before its pixels are; plain values, so that JSON can carry it.

    Attributes:
        kind: Picture or clip.
        height: Rows after orientation, of a clip's first frame.
        width: Columns likewise.
        total_num_frames: Frames that a clip shows; None for pictures, as all that follows.
        duration_s: Seconds.
        indices: Frames chosen, counted from 0, ascending; the last one may be there twice.
        timestamps_s: When each of them is shown, in seconds from the clip's start.
    """

    kind: MediaKind
    height: int
    width: int
    total_num_frames: int | None = None
    duration_s: float | None = None
    indices: tuple[int, ...] | None = None
    timestamps_s: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Media:
    """A file that is being decoded.

    Attributes:
        info: What it is.
        frames: uint8 ``[height, width, 3]``, RGB: the picture, or a frame for every index, each
            valid until the next one is asked for. Raises ``DecodeError``.
    """

    info: MediaInfo
    frames: Iterator[NDArray[np.uint8]]


def open_media(data: bytes | memoryview, options: MediaOptions) -> Media:
    """Begins to decode a file.

    Raises:
        DecodeError: As ``decode_image`` and ``VideoReader`` do.
    """
    if sniff_image_format(data) is not None:
        image = decode_image(data, max_pixels=options.max_pixels)
        info = MediaInfo(kind="image", height=image.height, width=image.width)
        return Media(info=info, frames=iter([image.pixels]))
    raise NotImplementedError
