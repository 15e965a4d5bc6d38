"""JPEG pictures straight to an array, where that gives the pixels that Pillow gives.

Pillow keeps four bytes a pixel, of which numpy's three are copied twice; libjpeg-turbo itself
writes them in their place. `benchmarks/jpeg_decoders.py` compares what else could be had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import simplejpeg

from processors.jpeg_scans import TABLES, segments
from processors.orientation import UPRIGHT, Room, fresh, orientation_of, turn_upright
from processors.sizes import reduced_size, reduction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.JpegImagePlugin import JpegImageFile

    from processors.options import ImageOptions

# A block of 8 x 8 pixels is two bits at the least, unless one scan passes over many at once. A file
# with fewer is cut or strange, and libjpeg-turbo would fill all of its pixels before it says so.
_MOST_PIXELS_A_BYTE: Final = 4 * 64

# Frames of a cosine transform, Huffman coded, as cameras and encoders make them. Arithmetic and
# lossless ones are rare enough to be Pillow's (asked for fewer pixels of the latter, libjpeg-turbo
# before 3.1.4 writes beyond its memory), and so is whatever may stand before a frame but tables.
_FRAMES: Final = (0xC0, 0xC1, 0xC2)


def decode_jpeg(
    data: bytes,
    header: JpegImageFile,
    *,
    room: Room | None = None,
    reduce_for: ImageOptions | None = None,
) -> NDArray[np.uint8] | None:
    """Decodes a JPEG file that Pillow has opened, and found to be within the limits.

    What is not flawless is left to Pillow, which decides what comes of it.

    Args:
        data: The whole file.
        header: What Pillow made of its header.
        room: Where the pixels go.
        reduce_for: What will resize the picture, see ``decode_image``.

    Returns:
        uint8 ``[height, width, 3]``, RGB, after orientation and reduction; None where Pillow has to
        decode it.
    """
    if header.mode not in ("RGB", "L") or not _is_common(data):
        return None
    if header.width * header.height > _MOST_PIXELS_A_BYTE * len(data):
        return None
    size = header.height, header.width
    factor = 1 if reduce_for is None else reduction(*size, reduce_for)
    height, width = reduced_size(*size, factor)
    least = (height, width) if factor > 1 else (0, 0)
    orientation = orientation_of(header)
    place = room or fresh if orientation == UPRIGHT else fresh
    try:
        stored = place(height, width)
        # It reduces to the least that is still that large; where that is nothing, not at all.
        found = simplejpeg.decode_jpeg(
            data, "RGB", min_height=least[0], min_width=least[1], buffer=stored
        )
    except (ValueError, MemoryError):
        return None
    if found.shape != stored.shape:
        return None
    return turn_upright(stored, orientation, room)


def _is_common(data: bytes) -> bool:
    """Whether one of the usual frames follows upon segments that leave nothing between them."""
    kinds = (kind for kind, _ in segments(data))
    return next((kind in _FRAMES for kind in kinds if kind not in TABLES), False)
