"""GIF and WebP files, and animations of many frames or of few that are huge."""

from __future__ import annotations

import io
import struct

from tests.support.png_bombs import apng

_PIXEL = b"\x02\x02\x44\x01\x00"  # one, compressed
_COMMENT = b"!\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0"
_CLEARING = b"\x02" + (b"\xff" + b"\x24\x49\x92" * 85) * 4000 + b"\0"  # codes that begin anew
_ANIMATED, _WITH_PROFILE, _WITH_EXIF = 0x02, 0x22, 0x0A


def gif_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name, where animations count as their first frame."""
    aside = _image(8, 8, left=65_000, top=65_000)
    return {
        "16,000 x 16,000.gif": (gif(16_000, 16_000, pixel()), "too_large"),
        "65,535 x 65,535.gif": (gif(65_535, 65_535, pixel()), "too_large"),
        "13,000 x 13,000.gif": (gif(13_000, 13_000, _image(13_000, 13_000)), "truncated"),
        "no pixels.gif": (gif(0, 0, _image(0, 0)), "corrupt"),
        "outside of the screen.gif": (gif(8, 8, aside), "too_large"),
        "later outside of the screen.gif": (gif(1, 1, pixel(), aside), None),
        "1 MB that says nothing.gif": (gif(8, 8, _image(8, 8, _CLEARING)), "truncated"),
        "20 MB of comments.gif": (gif(1, 1, _COMMENT, pixel()), None),
        "200,000 extensions.gif": (gif(1, 1, b"!\1\1\0\0" * 200_000, pixel()), None),
        "100,000 frames.gif": (gif(8, 8, pixel() * 100_000), None),
    }


def webp_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Likewise."""
    still = _dot()
    frame = _frame(still)
    profile, exif = _chunk(b"ICCP", bytes(2**24)), _chunk(b"EXIF", bytes(2**24))
    return {
        "16,384 x 16,384.webp": (_webp(_canvas(16_384), frame), "too_large"),
        "16,777,216 x 16,777,216.webp": (_webp(_canvas(2**24), frame), "too_large"),
        "16,384 x 16,384 lossless.webp": (_webp(_stretched(still, 16_384)), "too_large"),
        "a frame outside.webp": (_webp(_canvas(1), _frame(still, left=500)), "corrupt"),
        "16 MB of profile.webp": (_webp(_canvas(1, _WITH_PROFILE), profile, frame), None),
        "16 MB of EXIF.webp": (_webp(_canvas(1, _WITH_EXIF), frame, exif), None),
        "1,000,000 chunks.webp": (_webp(_canvas(1), frame, _chunk(b"NULL", b"") * 10**6), None),
        "a RIFF of 4 GiB.webp": (b"RIFF\xf6\xff\xff\xffWEBPVP8X", "truncated"),
    }


def animations() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name, where animations are clips."""
    aside, far = pixel(left=5000, top=5000), pixel(left=65_000, top=65_000)
    return {
        "5,000 frames.gif": (gif(8, 8, pixel() * 5000), None),
        "5,000 frames.png": (apng(8, 8, frames=5000), None),
        "5,000 frames.webp": (webp_of(8, frames=5000), None),
        "a frame aside.gif": (gif(8, 8, pixel(), aside), "corrupt"),
        "a frame far aside.gif": (gif(8, 8, pixel(), far), "too_large"),
        "2^31 frames stated.png": (apng(8, 8, frames=3, stated=2**31), "truncated"),
        "2^32 - 1 frames stated.png": (apng(8, 8, frames=3, stated=2**32 - 1), None),
        "huge canvas.webp": (webp_of(16_384, frames=2), "too_large"),
    }


def endless_animations() -> dict[str, tuple[bytes, str | None]]:
    """Likewise; small files that go over all pixels again and again."""
    return {
        "20,000 frames.gif": (gif(2000, 2000, pixel() * 20_000), "decode_timeout"),
        "20,000 frames.png": (apng(2000, 2000, frames=20_000), "decode_timeout"),
        "20,000 frames.webp": (webp_of(2000, frames=20_000), "decode_timeout"),
    }


def stretched_webp(side: int) -> bytes:
    """A square of one colour, in a few bytes."""
    return _webp(_stretched(_dot(), side))


def webp_of(side: int, *, frames: int) -> bytes:
    """A canvas with frames of one pixel."""
    return _webp(_canvas(side), _frame(_dot()) * frames)


def gif(width: int, height: int, *blocks: bytes) -> bytes:
    """A screen and what is shown on it, in two colours."""
    screen = struct.pack("<6sHH3B", b"GIF89a", width, height, 0x80, 0, 0)
    return screen + b"\0\0\0\xff\xff\xff" + b"".join(blocks) + b";"


def pixel(*, left: int = 0, top: int = 0) -> bytes:
    """A frame of one pixel."""
    return _image(1, 1, left=left, top=top)


def _image(width: int, height: int, data: bytes = _PIXEL, *, left: int = 0, top: int = 0) -> bytes:
    return b"," + struct.pack("<4HB", left, top, width, height, 0) + data


def _webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<L", len(data)) + data + bytes(len(data) % 2)


def _canvas(side: int, flags: int = _ANIMATED) -> bytes:
    sides = 2 * (side - 1).to_bytes(3, "little")
    return _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides) + _chunk(b"ANIM", bytes(6))


def _frame(picture: bytes, *, left: int = 0) -> bytes:
    """One of one pixel, shown for 50 ms."""
    numbers = (left // 2, 0, 0, 0, 50)
    place = b"".join(number.to_bytes(3, "little") for number in numbers)
    return _chunk(b"ANMF", place + b"\0" + picture)


def _dot() -> bytes:
    """The chunk of one lossless pixel."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "WEBP", lossless=True)
    return file.getvalue()[12:]


def _stretched(picture: bytes, side: int) -> bytes:
    """The same, said to be larger."""
    return picture[:9] + struct.pack("<L", (side - 1) | (side - 1) << 14) + picture[13:]
