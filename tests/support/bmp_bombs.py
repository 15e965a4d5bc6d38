"""BMP files whose headers lie."""

from __future__ import annotations

import struct

_RAW, _RLE8, _RLE4, _BITFIELDS, _JPEG = range(5)


def bmp_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name."""
    return {
        "16,000 x 16,000.bmp": (_bmp(16_000, 16_000), "too_large"),
        "2,147,483,647 wide.bmp": (_bmp(2**31 - 1, 2**31 - 1), "too_large"),
        "-16,000 high.bmp": (_bmp(16_000, -16_000), "too_large"),
        "-2,147,483,648 high.bmp": (_bmp(1, -(2**31)), "too_large"),
        "-1 wide.bmp": (_bmp(-1, 1), "too_large"),
        "13,000 x 13,000.bmp": (_bmp(13_000, 13_000), "truncated"),
        "13,000 x -13,000.bmp": (_bmp(13_000, -13_000), "truncated"),
        "13,000 x 13,000 RLE8.bmp": (_bmp(13_000, 13_000, compression=_RLE8), "truncated"),
        "13,000 x 13,000 RLE4.bmp": (_bmp(13_000, 13_000, depth=4, compression=_RLE4), "truncated"),
        "no pixels.bmp": (_bmp(0, 0), "corrupt"),
        "200,000 steps of nothing.bmp": (
            _bmp(8, 8, bytes((0, 2, 0, 0)) * 200_000, compression=_RLE8),
            "truncated",
        ),
        "runs over the edge.bmp": (
            _bmp(8, 8, b"\xff\0" * 200_000, compression=_RLE8),
            "truncated",
        ),
        "an early end.bmp": (_bmp(8, 8, b"\0\1", compression=_RLE8), "corrupt"),
        "leap over the end.bmp": (_bmp(8, 8, bytes((0, 2, 255, 255)), compression=_RLE8), None),
        "4,294,967,295 colours.bmp": (_bmp(8, 8, colours=2**32 - 1), "unsupported_format"),
        "65,536 colours.bmp": (_bmp(8, 8, colours=65_536), "truncated"),
        "header of 4 GiB.bmp": (b"BM" + bytes(12) + b"\xff\xff\xff\xff" + bytes(36), "truncated"),
        "pixels in the header.bmp": (_bmp(8, 8, bytes(64), offset=2), None),
        "pixels behind the end.bmp": (_bmp(8, 8, offset=2**32 - 1), "truncated"),
        "JPEG inside.bmp": (_bmp(8, 8, b"\xff\xd8\xff", compression=_JPEG), "unsupported_format"),
        "bits in no order.bmp": (
            _bmp(8, 8, b"\xff" * 400, depth=32, compression=_BITFIELDS),
            "unsupported_format",
        ),
        "33 bits.bmp": (_bmp(8, 8, depth=33), "unsupported_format"),
    }


def run_length_bmp(side: int) -> bytes:
    """A square of rows that each hold one pixel, and leave the others out."""
    return _bmp(side, side, b"\1\0\0\0" * side, compression=_RLE8)


def _bmp(
    width: int,
    height: int,
    data: bytes = b"\0\0",
    *,
    depth: int = 8,
    compression: int = _RAW,
    colours: int = 2,
    offset: int = 62,
) -> bytes:
    header = struct.pack("<LllHH", 40, width, height, 1, depth)
    header += struct.pack("<LLLLLL", compression, len(data), 0, 0, colours, 0)
    return b"BM" + struct.pack("<LLL", 0, 0, offset) + header + b"\0\0\0\0\xff\0\0\0" + data
