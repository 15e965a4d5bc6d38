"""Any Pillow image as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from PIL import Image, TiffImagePlugin

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0
_SIGNED = 2

_STRIP_PIXELS: Final = 2**20
_MOST_WHOLE_PIXELS: Final = 2**24

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

    It goes by strips of rows, or the steps in between would be several times what comes out, and
    leave the processor's cache: that is twice as fast for most large images.

    Returns:
        uint8 ``[height, width, 3]``, a copy that may be written to.

    Raises:
        ValueError: For floating point and Lab images, and for 32-bit integers that no file format
            says the range of and that leave 0..65535.
    """
    if image.mode in _UNSUPPORTED:
        raise ValueError(
            f"images of mode {image.mode} are not supported: {_UNSUPPORTED[image.mode]}; "
            "convert to 8-bit RGB first"
        )
    is_rgb = image.mode == "RGB" and "transparency" not in image.info
    if is_rgb and image.width * image.height <= _MOST_WHOLE_PIXELS:
        return np.array(image)  # There are no steps in between.
    to_rgb = _from_wide_grey(image) if image.mode.startswith("I") else _from_8_bits
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = _STRIP_PIXELS // max(image.width, 1) + 1
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        is_whole = bottom - top == image.height
        pixels[top:bottom] = to_rgb(
            image if is_whole else image.crop((0, top, image.width, bottom))
        )
    return pixels


def scale_to_uint8(values: NDArray[Any], *, white: int) -> NDArray[np.uint8]:
    """Maps integers 0..``white`` onto 0..255, to the nearest level; negative ones become black."""
    # float32 is exact enough: for 16 bits the nearest tie is 0.002 levels away.
    scaled = values.astype(np.float32) * np.float32(255 / white)
    levels: NDArray[np.float32] = np.rint(scaled)
    return levels.clip(0, 255).astype(np.uint8)


def _from_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "La":
        image = image.convert("LA")  # Pillow goes no further from it.
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_wide_grey(image: Image.Image) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """What converts the strips of an image, by what its file says of the levels."""
    white = 65535
    is_signed = True
    is_inverted = False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
        white = 2 ** (bits - is_signed) - 1
        # Pillow inverts white-is-zero images of up to 8 bits only.
        is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    elif image.mode == "I":
        darkest, lightest = cast("tuple[int, int]", image.getextrema())
        if not 0 <= darkest <= lightest <= white:
            # Pillow's own convention: it writes mode I to PNG as 16 bits.
            raise ValueError(
                f"an image of mode I must hold 16-bit levels, 0..{white}, "
                f"got {darkest}..{lightest}; convert it to mode L or I;16 first"
            )

    def to_rgb(strip: Image.Image) -> NDArray[np.uint8]:
        values: NDArray[Any] = np.asarray(strip)
        if values.dtype == np.int32 and not is_signed:
            values = values.view(np.uint32)  # Pillow keeps unsigned 32 bits in a signed mode
        levels = scale_to_uint8(values, white=white)
        if is_inverted:
            np.subtract(255, levels, out=levels)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            levels[values == transparent] = 255
        return levels[..., None]

    return to_rgb
