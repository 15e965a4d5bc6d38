"""Animated GIF, WebP and PNG files as clips, with Pillow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import groupby, repeat
from typing import TYPE_CHECKING, Final

import numpy as np

from processors.decode import came_up_short, open_picture
from processors.errors import DecodeError
from processors.metadata import VideoMetadata
from processors.orientation import orientation_of, turn_upright
from processors.rgb import pil_to_rgb
from processors.timeline import Timeline, timeline_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

# Delays that browsers take for "as fast as possible", and what they show such frames for.
_SHORTEST_DELAY_MS: Final = 10
_UNSTATED_DELAY_MS: Final = 100

_TICK_S: Final = Fraction(1, 1_000_000)


class AnimationReader:
    """An animation, of which frames can be had as from a ``VideoReader``.

    Frames are composited as they are meant to be seen, on white, and last as long as the file says;
    delays of 10 ms or less count as 100 ms, as in browsers. Opening it decodes all frames once,
    for Pillow knows their delays no earlier.

    Attributes:
        metadata: Exact.
    """

    metadata: VideoMetadata

    def __init__(self, data: bytes, *, max_pixels: int) -> None:
        """Opens an animation.

        Args:
            data: The whole file, in a format that has animations.
            max_pixels: Largest ``width * height``.

        Raises:
            DecodeError: As ``decode_image``.
            ValueError: If ``max_pixels`` is not positive.
        """
        self._data = data
        self._max_pixels = max_pixels
        with open_picture(data, max_pixels=max_pixels) as image:
            delays_ms = list(_delays_ms(image))
            height, width = _pixels(image).shape[:2]
        self._timeline = _timeline(delays_ms)
        self.metadata = VideoMetadata(
            total_num_frames=self._timeline.num_frames,
            fps=self._timeline.fps,
            width=width,
            height=height,
            duration=self._timeline.duration_s,
            video_backend="pillow",
        )

    def timestamps(self, indices: Sequence[int]) -> list[float]:
        """When the frames are shown, in seconds from the start.

        Raises:
            ValueError: As ``frames`` does.
        """
        positions = self._timeline.positions(indices)
        return [float(self._timeline.seconds[position]) for position in positions]

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Decodes frames.

        Args:
            indices: Ascending; an index may be there several times.

        Yields:
            uint8 ``[height, width, 3]``, RGB: a frame for every index.

        Raises:
            DecodeError: As ``decode_image``.
            ValueError: If an index is no frame's, or they do not ascend.
        """
        return self._decode(self._timeline.positions(indices))

    def close(self) -> None:
        """Lets go of nothing: each ``frames`` opens and closes its own."""

    def _decode(self, positions: list[int]) -> Iterator[NDArray[np.uint8]]:
        with open_picture(self._data, max_pixels=self._max_pixels) as image:
            for position, run in groupby(positions):
                image.seek(_first_frame(image) + position)
                yield from repeat(_pixels(image), len(list(run)))


def is_animated(data: bytes, *, max_pixels: int) -> bool:
    """Tells an animation from a picture.

    Raises:
        DecodeError: As ``decode_image``.
        ValueError: If ``max_pixels`` is not positive.
    """
    with open_picture(data, max_pixels=max_pixels) as image:
        return _num_frames(image) > 1


def _num_frames(image: ImageFile) -> int:
    """How many frames are shown; PNG files may begin with a picture that is none of them."""
    try:
        num_frames = int(getattr(image, "n_frames", 1))
    finally:
        # Pillow takes the end of the file for the end of a GIF, which has a mark of its own.
        if image.format == "GIF" and came_up_short(image):
            raise DecodeError("truncated", "GIF: the file ends before the animation does")
    return num_frames - _first_frame(image)


def _first_frame(image: ImageFile) -> int:
    return int(getattr(image, "default_image", False))


def _delays_ms(image: ImageFile) -> Iterator[float]:
    first, size = _first_frame(image), image.size
    for position in range(_num_frames(image)):
        image.seek(first + position)
        if image.size != size:  # Pillow enlarges the screen of a GIF when it comes to it.
            raise DecodeError("corrupt", f"GIF: frame {position} does not lie within its screen")
        image.load()
        delay_ms = float(image.info.get("duration", 0))
        yield delay_ms if delay_ms > _SHORTEST_DELAY_MS else _UNSTATED_DELAY_MS


def _timeline(delays_ms: list[float]) -> Timeline:
    ends = np.rint(np.cumsum(delays_ms) * 1000).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    last = int(ends[-1] - starts[-1])
    return timeline_of(starts, tick_s=_TICK_S, last=last, stated_fps=None)


def _pixels(image: ImageFile) -> NDArray[np.uint8]:
    image.load()
    return turn_upright(pil_to_rgb(image), orientation_of(image))
