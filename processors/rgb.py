"""Any Pillow image as 8-bit RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, TiffImagePlugin

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0
_SIGNED = 2

_UNSUPPORTED: Final = {
    "F": "floating point has no level that is white",
    "LAB": "Lab needs a colour profile",
}


def pil_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Converts a Pillow image to 8-bit RGB, transparency on white.

    For 8-bit modes the levels are the reference's: ``convert("RGBA")``, composited on white, where
    the image has alpha, a transparent palette entry or a colour key, else ``convert("RGB")``. Only
    of premultiplied ``RGBa``, which no file format is read as, the reference drops the alpha.
    Grey of more than 8 bits, which the reference clips to white, is scaled by the range of its
    sample type. Orientation is the caller's business.

    Returns:
        uint8 ``[height, width, 3]``, a copy that may be written to.

    Raises:
        ValueError: For floating point and Lab images, and for 32-bit integers that no file format
            says the range of and that leave 0..65535.
    """
    if image.mode.startswith("I"):
        return _wide_grey_to_rgb(image)
    if image.mode in _UNSUPPORTED:
        raise ValueError(
            f"images of mode {image.mode} are not supported: {_UNSUPPORTED[image.mode]}; "
            "convert to 8-bit RGB first"
        )
    if image.mode == "La":
        image = image.convert("LA")  # Pillow goes no further from it.
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def scale_to_uint8(values: NDArray[Any], *, white: int) -> NDArray[np.uint8]:
    """Maps integers 0..``white`` onto 0..255, to the nearest level; negative ones become black."""
    # float32 is exact enough: for 16 bits the nearest tie is 0.002 levels away.
    scaled = values.astype(np.float32) * np.float32(255 / white)
    levels: NDArray[np.float32] = np.rint(scaled)
    return levels.clip(0, 255).astype(np.uint8)


def _wide_grey_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    values: NDArray[Any] = np.asarray(image)
    white = 65535
    is_inverted = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
        white = 2 ** (bits - is_signed) - 1
        if values.dtype == np.int32 and not is_signed:
            values = values.view(np.uint32)  # Pillow keeps unsigned 32 bits in a signed mode
        # Pillow inverts white-is-zero images of up to 8 bits only.
        is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    elif image.mode == "I" and not 0 <= values.min() <= values.max() <= white:
        # Pillow's own convention: it writes mode I to PNG as 16 bits.
        raise ValueError(
            f"an image of mode I must hold 16-bit levels, 0..{white}, "
            f"got {values.min()}..{values.max()}; convert it to mode L or I;16 first"
        )
    levels = scale_to_uint8(values, white=white)
    if is_inverted:
        np.subtract(255, levels, out=levels)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255
    return np.repeat(levels[..., None], 3, axis=2)
