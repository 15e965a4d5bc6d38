"""PNG files that cost more than they weigh."""

from __future__ import annotations

import struct
import zlib

from tests.support.exif_bombs import exif_bombs

_GREY, _RGB, _PALETTE = 0, 2, 3


def png_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name."""
    body = _chunk(b"IDAT", zlib.compress(bytes(2 * 9)))
    bomb = zlib.compress(bytes(2**24), 9)
    large = zlib.compress(b" " * (2**20 - 100), 9)
    texts = {
        "iCCP": _chunk(b"iCCP", b"profile\0\0" + bomb),
        "zTXt": _chunk(b"zTXt", b"Comment\0\0" + bomb),
        "iTXt": _chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        "XMP": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        "70 zTXt": b"".join(_chunk(b"zTXt", b"%d\0\0" % n + large) for n in range(70)),
        "70 MB of tEXt": b"".join(_chunk(b"tEXt", b"%d\0" % n + b" " * 2**20) for n in range(70)),
    }
    return {
        "16,000 x 16,000.png": (_png(16_000, 16_000, body), "too_large"),
        "4,294,967,295 pixels wide.png": (_png(2**32 - 1, 2**32 - 1, body), "too_large"),
        "13,000 x 13,000.png": (_png(13_000, 13_000, body), "truncated"),
        "13,000 x 13,000 of 16 bits.png": (_png(13_000, 13_000, body, depth=16), "truncated"),
        "13,000 x 13,000 interlaced.png": (_png(13_000, 13_000, body, interlaced=1), "truncated"),
        "no width.png": (_png(0, 8, body), "corrupt"),
        **{
            f"{name} bomb.png": (_png(8, 2, text, body), "too_large")
            for name, text in texts.items()
        },
        "zTXt bomb behind.png": (_png(8, 2, body, texts["zTXt"]), "too_large"),
        "30 MB of profiles.png": (
            _png(8, 2, *[_chunk(b"iCCP", b"profile\0\0" + large)] * 30, body),
            None,
        ),
        "200,000 chunks.png": (tiny_chunks(b"teST", 200_000), None),
        "200,000 chunks of pixels.png": (tiny_chunks(b"IDAT", 200_000), None),
        "100 headers.png": (_png(8, 2, *[_ihdr(8, 2)] * 100, body), None),
        "a header behind.png": (_png(8, 2, _ihdr(30_000, 30_000), body), "too_large"),
        "palette of 16 MB.png": (
            _png(8, 2, _chunk(b"PLTE", bytes(2**24)), body, colour=_PALETTE),
            "corrupt",
        ),
        "pixels behind the last.png": (_png(8, 2, _chunk(b"IDAT", bomb)), None),
        "chunk of 2 GiB.png": (
            _png(8, 2)[:33] + struct.pack(">L4s", 2**31 - 1, b"tEXt"),
            "truncated",
        ),
        **{
            f"{name}.png": (_png(8, 2, _chunk(b"eXIf", tags), body), None)
            for name, tags in exif_bombs().items()
        },
    }


def tiny_chunks(name: bytes, number: int) -> bytes:
    """A picture behind empty chunks."""
    return _png(8, 2, _chunk(name, b"") * number, _chunk(b"IDAT", zlib.compress(bytes(2 * 9))))


def png_of(width: int, height: int, *, depth: int = 1, in_colour: bool = False) -> bytes:
    """A picture of zeros."""
    row = bytes(1 + -(-width * depth * (3 if in_colour else 1) // 8))
    squeeze = zlib.compressobj(1)
    rows = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    colour = _RGB if in_colour else _GREY
    return _png(width, height, _chunk(b"IDAT", rows), depth=depth, colour=colour)


def apng(width: int, height: int, *, frames: int, stated: int | None = None) -> bytes:
    """An animation whose frames are one pixel, but for the first one."""
    first = zlib.compress(bytes(height * (width + 1)))
    dot = zlib.compress(bytes(2))
    numbers = iter(range(2 * frames))

    def control(width: int, height: int) -> bytes:
        return _chunk(
            b"fcTL", struct.pack(">5L2H2B", next(numbers), width, height, 0, 0, 1, 50, 0, 0)
        )

    parts = [_chunk(b"acTL", struct.pack(">2L", stated or frames, 0))]
    parts += [control(width, height), _chunk(b"IDAT", first)]
    for _ in range(frames - 1):
        parts += [control(1, 1), _chunk(b"fdAT", struct.pack(">L", next(numbers)) + dot)]
    return _png(width, height, *parts)


def _png(
    width: int,
    height: int,
    *chunks: bytes,
    depth: int = 8,
    colour: int = _GREY,
    interlaced: int = 0,
) -> bytes:
    header = _ihdr(width, height, depth, colour, interlaced)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _ihdr(
    width: int, height: int, depth: int = 8, colour: int = _GREY, interlaced: int = 0
) -> bytes:
    return _chunk(b"IHDR", struct.pack(">LL5B", width, height, depth, colour, 0, 0, interlaced))


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", checksum)
