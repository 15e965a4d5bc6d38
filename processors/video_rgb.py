"""Decoded frames as RGB, upright, as FFmpeg converts them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from av.filter import Graph

from processors.errors import DecodeError

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

# Matrices by their numbers in the standards (ITU-T H.273), as far as FFmpeg converts them: RGB
# itself, BT.709, unspecified, FCC, BT.601 twice, SMPTE 240M, BT.2020.
_MATRICES: Final = frozenset([0, 1, 2, 4, 5, 6, 7, 9])
_UNSPECIFIED: Final = 2
_RESERVED: Final = 3


class RgbConverter:
    """Converts a clip's frames.

    The filters are those that the ``ffmpeg`` command puts in for ``-pix_fmt rgb24``: matrix and
    range as the frame states them (BT.601 and limited where it does not), bicubic chroma, alpha
    dropped, and turned as the display matrix says. Turns that are no quarters go to the nearest
    one. Samples count as square, fields are not taken apart. The first frame decides on the turn
    and the size; others are scaled to it.

    Attributes:
        height: Rows of what is converted.
        width: Columns.
    """

    def __init__(self, first: VideoFrame) -> None:
        self._turns = _turns_of(first)
        self._size = first.width, first.height
        is_on_its_side = "transpose" in dict(self._turns)
        self.width, self.height = self._size[::-1] if is_on_its_side else self._size
        self._graph: Graph | None = None
        self._graph_is_for: tuple[object, ...] = ()

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Converts a frame.

        Returns:
            uint8 ``[height, width, 3]``, valid until the next one is converted; rows may be padded.

        Raises:
            DecodeError: With code ``unsupported_format`` for colours that FFmpeg cannot convert.
        """
        if frame.colorspace == _RESERVED:
            frame.colorspace = _UNSPECIFIED
        if frame.colorspace not in _MATRICES:
            raise DecodeError(
                "unsupported_format", f"its colours have matrix {frame.colorspace}, see ITU-T H.273"
            )
        kind = (
            (frame.width, frame.height),
            frame.format.name,
            frame.colorspace,
            frame.color_range,
        )
        if self._graph is None or kind != self._graph_is_for:
            self._graph, self._graph_is_for = self._build(frame), kind
        self._graph.vpush(frame)
        return np.asarray(self._graph.vpull().to_ndarray(), np.uint8)

    def _build(self, frame: VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add(
            "buffer",
            video_size=f"{frame.width}x{frame.height}",
            pix_fmt=frame.format.name,
            colorspace=str(frame.colorspace),
            range=str(frame.color_range),
            time_base=str(frame.time_base or Fraction(1)),
        )
        steps = list(self._turns)
        if (frame.width, frame.height) != self._size:
            steps.append(("scale", f"{self.width}:{self.height}"))
        # FFmpeg puts the conversion where it does in its own command, turned 4:2:2 included.
        steps += [("format", "rgb24"), ("buffersink", None)]
        graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in steps))
        graph.configure()
        return graph


def _turns_of(frame: VideoFrame) -> list[tuple[str, str | None]]:
    """The filters that bring a frame upright."""
    a, b, c, d = _display_matrix(frame)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        turns: list[tuple[str, str | None]] = [("hflip", None)] if a < 0 else []
        return [*turns, ("vflip", None)] if d < 0 else turns
    if b > 0:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    return [("transpose", "clock_flip" if c < 0 else "cclock")]


def _display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """``(a, b, c, d)``, by which a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        data = cast("Mapping[str, Buffer]", frame.side_data)["DISPLAYMATRIX"]
        a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32)
    except KeyError:
        return 1, 0, 0, 1
    except ValueError:
        # PyAV does not know all kinds of side data. Then the angle alone is to be had.
        cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[round(frame.rotation / 90) % 4]
        return cos, -sin, sin, cos
    return int(a), int(b), int(c), int(d)
