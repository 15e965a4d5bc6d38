"""Pictures as they are meant to be seen: turned as their EXIF (or XMP) data say."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Room = Callable[[int, int], "NDArray[np.uint8]"]
"""Gives memory for the pixels of a picture, by its height and width: uint8 ``[H, W, 3]``."""

UPRIGHT: Final = 1
_LYING: Final = (5, 6, 7, 8)

# Views of rows and columns as they are stored, by orientation.
_TURNS: Final[dict[int, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.T,
    6: lambda stored: stored[::-1].T,
    7: lambda stored: stored[::-1, ::-1].T,
    8: lambda stored: stored.T[::-1],
}


def orientation_of(image: Image.Image) -> int:
    """Finds the orientation of a decoded image, ``UPRIGHT`` where it has none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise  # That is no fault of the EXIF's, and the picture may lie on its side.
    except Exception:
        # Unreadable EXIF says nothing about the pixels.
        return UPRIGHT
    return orientation if orientation in _TURNS else UPRIGHT


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Finds the height and width of a decoded image after orientation."""
    is_lying = orientation_of(image) in _LYING
    return (image.width, image.height) if is_lying else (image.height, image.width)


def turn_upright(
    stored: NDArray[np.uint8], orientation: int, room: Room | None = None
) -> NDArray[np.uint8]:
    """Turns pixels as an orientation says.

    Args:
        stored: uint8 ``[H, W, 3]``, contiguous.
        orientation: As ``orientation_of`` finds it.
        room: Where what is turned goes; memory of its own where there is none.

    Returns:
        Contiguous pixels; ``stored`` itself where they are upright.
    """
    if orientation == UPRIGHT:
        return stored
    # Whole pixels, as numpy moves single bytes at a third of the speed.
    turned = _TURNS[orientation](stored.view("V3")[..., 0])
    upright = (room or fresh)(*turned.shape)
    np.copyto(upright.view("V3")[..., 0], turned)
    return upright


def fresh(height: int, width: int) -> NDArray[np.uint8]:
    """Memory of its own, as ``Room``."""
    return np.empty((height, width, 3), np.uint8)
