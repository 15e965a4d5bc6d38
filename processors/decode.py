"""Encoded pictures to RGB pixels, with limits.

Everything here parses untrusted bytes. A limit on pixels is kept, but memory and time are not: run
it in a process that may be killed where the bytes are not your own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

# Naming the plugins keeps every other parser of Pillow out of reach. Constructing them is what
# Image.open does, less two things: its loop over formats, and a pixel limit that is a global of the
# process and warns, where this one is an argument and threads may differ.
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from processors.errors import DecodeError
from processors.formats import ImageFormat, describe_content, sniff_image_format
from processors.jpeg import decode_jpeg
from processors.jpeg_scans import MAX_SCANS, has_too_many_scans
from processors.orientation import Room, orientation_of, turn_upright, upright_size
from processors.rgb import pil_to_rgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

    from processors.options import ImageOptions

DEFAULT_MAX_PIXELS: Final = 2**28 // 3
"""Pillow's own default limit: what fits into 256 MiB as RGB."""

_PLUGINS: Final[dict[ImageFormat, Callable[[io.BytesIO], ImageFile]]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    # Not Pillow's jpeg_factory: a phone's multi-picture JPEG (MPO) is read as its first image.
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}

_TIFF_CHUNK_TAGS: Final = ((273, 279), (324, 325))  # offsets and sizes: of strips, of tiles

_TRUNCATED: Final = re.compile("truncated|unexpected end|premature end", re.IGNORECASE)
_TOO_LARGE: Final = re.compile("too large|too much memory", re.IGNORECASE)
_OUT_OF_MEMORY: Final = re.compile("decoder error -9|out of memory")
_UNSUPPORTED: Final = re.compile(
    "unknown|unsupported|not supported|cannot handle|not available|not installed", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """A picture as it is meant to be seen.

    Attributes:
        pixels: uint8 ``[height, width, 3]``, RGB, after orientation, transparency on white; fewer
            rows and columns where the picture was reduced.
        format: What the bytes were, whatever the file was called.
        height: Rows of the picture after orientation.
        width: Columns likewise.
    """

    pixels: NDArray[np.uint8]
    format: ImageFormat
    height: int
    width: int


class _Source(io.BytesIO):
    """The bytes of a file, remembering whether a parser asked for more than there were."""

    came_up_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if size is not None and len(chunk) < size:
            self.came_up_short = True
        return chunk


def decode_image(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    room: Room | None = None,
    reduce_for: ImageOptions | None = None,
) -> DecodedImage:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF or GIF file.

    Of files with several images the first one counts: the first page of a TIFF, the first frame of
    an animation, the main picture of an MPO. EXIF (or XMP) orientation is applied, as the reference
    does for paths and bytes; broken EXIF counts as none. 16-bit grey is scaled, not clipped. CMYK
    is converted without a colour profile, and embedded profiles are ignored, as in the reference.

    It touches no global state and may run in several threads at once. One setting of the process
    does bear on it: ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` must stay False, its default.

    Args:
        data: The whole file.
        max_pixels: Largest ``width * height``, compared with the header before anything is decoded.
        room: Gives memory, uint8 ``[height, width, 3]``, for the pixels of a picture of that size.
            What can be decoded in place is; the others' pixels are in memory of their own.
        reduce_for: Decode a JPEG at a half, a quarter or an eighth of its sides, where that is no
            smaller than what these options will resize it to: faster, and not quite the same.

    Returns:
        The pixels, and the format found.

    Raises:
        DecodeError: With code ``empty``, ``unsupported_format`` (no known format, or a variant of
            one that Pillow cannot read, floating point and Lab TIFF included), ``too_large`` (over
            100 scans of a JPEG and texts or profiles of a PNG that unpack to over 1 MiB included),
            ``truncated``, ``corrupt`` or ``decoder_out_of_memory``.
        ValueError: If ``max_pixels`` is not positive.
    """
    with open_picture(data, max_pixels=max_pixels) as image:
        pixels = None
        if isinstance(image, JpegImageFile):
            pixels = decode_jpeg(data, image, room=room, reduce_for=reduce_for)
        if pixels is None:
            image.load()
            pixels = turn_upright(pil_to_rgb(image), orientation_of(image))
        height, width = upright_size(image)
    image_format = sniff_image_format(data)
    assert image_format is not None
    return DecodedImage(pixels=pixels, format=image_format, height=height, width=width)


@contextmanager
def open_picture(data: bytes, *, max_pixels: int) -> Iterator[ImageFile]:
    """Opens a file with Pillow, and turns what goes wrong in the block into our errors.

    Args:
        data: The whole file.
        max_pixels: Largest ``width * height``.

    Yields:
        The image, of which nothing is decoded yet.

    Raises:
        DecodeError: As ``decode_image``.
        ValueError: If ``max_pixels`` is not positive.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}")
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    image_format = sniff_image_format(data)
    if image_format is None:
        raise DecodeError(
            "unsupported_format",
            f"expected JPEG, PNG, WebP, BMP, TIFF or GIF, found {describe_content(data)}",
        )
    source = _Source(data)
    image: ImageFile | None = None
    # Pillow's parsers raise whatever the bytes provoke: SyntaxError, struct.error, zlib.error,
    # KeyError, OverflowError, AssertionError... This is the one place where all of it becomes one
    # of ours, hence Exception.
    try:
        image = _PLUGINS[image_format](source)
        check_size(*image.size, max_pixels=max_pixels)
        if image_format == "JPEG" and has_too_many_scans(data):
            raise DecodeError("too_large", f"JPEG: it has over {MAX_SCANS} scans")
        yield image
    except DecodeError:
        raise
    except Exception as error:
        if isinstance(image, JpegImageFile) and "broken" in str(error) and _lacks_memory(image):
            raise DecodeError("decoder_out_of_memory", f"JPEG: {error}") from error
        _raise_decode_error(
            error, image_format=image_format, is_cut=_is_cut(data, source=source, image=image)
        )


def came_up_short(image: ImageFile) -> bool:
    """Whether more bytes of an open picture were asked for than there are."""
    return isinstance(image.fp, _Source) and image.fp.came_up_short


def check_size(width: int, height: int, *, max_pixels: int) -> None:
    """Refuses a picture or frame that is larger than allowed.

    Raises:
        DecodeError: With code ``too_large``, or ``corrupt`` where a side is not positive.
    """
    if width < 1 or height < 1:
        raise DecodeError("corrupt", f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(
            "too_large",
            f"{width} x {height} is {width * height} pixels, over the limit of {max_pixels}",
        )


def _lacks_memory(image: JpegImageFile) -> bool:
    """Whether there is no room for the coefficients, which Pillow tells as a broken data stream."""
    try:
        bytearray(2 * image.width * image.height * image.layers)
    except MemoryError:
        return True
    return False


def _is_cut(data: bytes, *, source: _Source, image: ImageFile | None) -> bool:
    """Tells a file that ends too early from a broken one, where Pillow's message does not."""
    if data[:4] == b"RIFF":
        # libwebp fails in the same words for both, but RIFF states its length.
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if image is None or isinstance(image, BmpImageFile):
        # While a header is read, reads are exact. Later they go by blocks, and the last one is
        # short in sound files too; but those of BMP files all have their pixels by then.
        return source.came_up_short
    if isinstance(image, TiffImageFile):
        return any(
            isinstance(offset, int) and isinstance(size, int) and offset + size > len(data)
            for offsets_tag, sizes_tag in _TIFF_CHUNK_TAGS
            for offset, size in zip(
                image.tag_v2.get(offsets_tag, ()), image.tag_v2.get(sizes_tag, ()), strict=False
            )
        )
    return False


def _raise_decode_error(error: Exception, *, image_format: ImageFormat, is_cut: bool) -> NoReturn:
    detail = f"{image_format}: {error}" if str(error) else f"{image_format}: {type(error).__name__}"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(detail):
        raise DecodeError("decoder_out_of_memory", detail) from error
    if isinstance(
        error, (Image.DecompressionBombError, Image.DecompressionBombWarning)
    ) or _TOO_LARGE.search(detail):
        # Pillow's own limits: on sizes within GIF, TIFF and WebP, which count when max_pixels is
        # above them, and on texts and profiles within PNG.
        raise DecodeError("too_large", detail) from error
    if is_cut or isinstance(error, EOFError) or _TRUNCATED.search(detail):
        raise DecodeError("truncated", detail) from error
    # Pillow looks compressions up, and shows the number of one that it does not know.
    if _UNSUPPORTED.search(detail) or isinstance(error.__cause__, KeyError):
        raise DecodeError("unsupported_format", detail) from error
    raise DecodeError("corrupt", detail) from error
