"""TIFF files whose tables, pages and compressions lie."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

from tests.support.jpeg_bombs import many_scans

_RAW, _JPEG, _DEFLATE = 1, 7, 8
# CCITT, fax, LZW, JPEG, deflate, padded, PackBits, ThunderScan, LogLuv, LZMA, zstd, WebP.
_COMPRESSIONS = (2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 34676, 34677, 34925, 50000, 50001)
_JPEG_2000 = 34712
_WIDTH, _HEIGHT, _DEPTH, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_STRIPS, _ROWS, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_SUB_IFDS, _XMP, _PROFILE, _EXIF_IFD, _GPS_IFD = 330, 700, 34675, 34665, 34853
_PLACES = (_STRIPS, _TILES)

Tags = dict[int, Sequence[int]]


def tiff_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name."""
    return _sizes() | _tables() | _pages_and_tags()


def _sizes() -> dict[str, tuple[bytes, str | None]]:
    few = bytes(8)
    return {
        "16,000 x 16,000.tif": (_tiff(_plain(16_000, 16_000), few), "too_large"),
        "16,000 x 16,000, 64 bit.tif": (_tiff(_plain(16_000, 16_000), few, big=True), "too_large"),
        "4,294,967,295 wide.tif": (_tiff(_plain(2**32 - 1, 2**32 - 1), few), "too_large"),
        "2^63 wide, 64 bit.tif": (_tiff(_plain(2**63, 2**63), few, big=True), "too_large"),
        "no pixels.tif": (_tiff(_plain(0, 0), few), "corrupt"),
        "65,535 samples.tif": (_tiff(_plain(8, 8) | {_SAMPLES: (65_535,)}, few), "corrupt"),
        "13,000 x 13,000.tif": (_tiff(_plain(13_000, 13_000), few), "truncated"),
        **{
            f"13,000 x 13,000 in compression {number}.tif": (
                _tiff(_plain(13_000, 13_000, compression=number), few),
                "corrupt",
            )
            for number in _COMPRESSIONS
        },
        "JPEG 2000.tif": (_tiff(_plain(8, 8, compression=_JPEG_2000), few), "unsupported_format"),
        "1,000 scans.tif": (_tiff(_plain(8, 8, compression=_JPEG), many_scans(8, 1000)), "corrupt"),
    }


def _tables() -> dict[str, tuple[bytes, str | None]]:
    few, many = bytes(8), 100_000
    strips = {_STRIPS: (0,) * many, _STRIP_BYTES: (1,) * many, _ROWS: (1,)}
    tiles = {_TILES: (0,) * many, _TILE_BYTES: (1,) * many}
    return {
        "100,000 strips of one byte.tif": (_tiff(_plain(8, 8) | strips, few), None),
        "100,000 tiles of one byte.tif": (_tiff(_tiled(1000, 1) | tiles, few), None),
        "strips behind the end.tif": (_tiff(_plain(8, 8) | {_STRIPS: (2**31,)}, few), "truncated"),
        "no strips.tif": (_tiff(_plain(8, 8) | {_STRIPS: ()}, few), "unsupported_format"),
        "tiles of 60,000 x 60,000.tif": (_tiff(_tiled(8, 60_000), few), "truncated"),
        "tiles of 60,000 x 60,000, deflated.tif": (
            _tiff(_tiled(8, 60_000) | {_COMPRESSION: (_DEFLATE,)}, few),
            "decoder_out_of_memory",
        ),
        "tiles of nothing.tif": (_tiff(_tiled(8, 0), few), "corrupt"),
    }


def _pages_and_tags() -> dict[str, tuple[bytes, str | None]]:
    row, much = bytes(8), (7,) * 2**20
    itself = {_SUB_IFDS: (8,), _EXIF_IFD: (8,), _GPS_IFD: (8,)}
    return {
        "100,000 pages.tif": (_pages(100_000), None),
        "a page that is its next.tif": (_tiff(_plain(8, 1), row, after=8), None),
        "a page that holds itself.tif": (_tiff(_plain(8, 1) | itself, row), None),
        "EXIF behind the end.tif": (_tiff(_plain(8, 1) | {_EXIF_IFD: (2**32 - 1,)}, row), None),
        "4 MB of profile.tif": (_tiff(_plain(8, 1) | {_PROFILE: much}, row), None),
        # Pillow looks for its orientation before it gives up the pixels.
        "4 MB of XMP that are no text.tif": (_tiff(_plain(8, 1) | {_XMP: much}, row), "corrupt"),
    }


def tiff_of(width: int, height: int, compression: str) -> bytes:
    """A bilevel picture of zeros, of which all strips are the same few bytes."""
    from PIL import Image, TiffImagePlugin

    file = io.BytesIO()
    Image.new("1", (width, 100)).save(file, "TIFF", compression=compression)
    file.seek(0)
    with TiffImagePlugin.TiffImageFile(file) as image:
        tags = image.tag_v2
        start, size, rows = tags[_STRIPS][0], tags[_STRIP_BYTES][0], tags[_ROWS]
        plain = _plain(width, height, compression=tags[_COMPRESSION])
    strips = -(-height // rows)
    table = {_STRIPS: (0,) * strips, _STRIP_BYTES: (size,) * strips, _ROWS: (rows,), _DEPTH: (1,)}
    return _tiff(plain | table, file.getvalue()[start : start + size])


def _plain(width: int, height: int, *, compression: int = _RAW) -> Tags:
    return {
        _WIDTH: (width,),
        _HEIGHT: (height,),
        _DEPTH: (8,),
        _COMPRESSION: (compression,),
        _PHOTOMETRIC: (1,),
        _STRIPS: (0,),
        _ROWS: (height,),
        _STRIP_BYTES: (8,),
    }


def _tiled(side: int, tile: int) -> Tags:
    strips: Tags = {_STRIPS: (), _STRIP_BYTES: (), _ROWS: ()}
    tiles = {_TILE_WIDTH: (tile,), _TILE_HEIGHT: (tile,), _TILES: (0,), _TILE_BYTES: (8,)}
    return _plain(side, side) | strips | tiles


def _tiff(tags: Tags, data: bytes, *, big: bool = False, after: int = 0) -> bytes:
    """One page; places of strips and tiles count from the start of ``data``."""
    letter, kind, inline = ("Q", 16, 8) if big else ("L", 4, 4)
    tags = {tag: tags[tag] for tag in sorted(tags) if tags[tag]}
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0\x08\0\0\0"
    entry = struct.calcsize(f"<HH{letter}") + inline
    start = len(head) + (8 if big else 2) + entry * len(tags) + inline
    data_at = start + sum(inline * len(values) for values in tags.values() if len(values) > 1)
    table, tail = struct.pack("<Q" if big else "<H", len(tags)), b""
    for tag, values in tags.items():
        shift = data_at if tag in _PLACES else 0
        packed = struct.pack(f"<{len(values)}{letter}", *(value + shift for value in values))
        if len(values) > 1:
            tail, packed = tail + packed, struct.pack(f"<{letter}", start + len(tail))
        table += struct.pack(f"<HH{letter}", tag, kind, len(values)) + packed
    return head + table + struct.pack(f"<{letter}", after) + tail + data


def _pages(number: int) -> bytes:
    first = _tiff(_plain(8, 1), b"")
    table = first[8:-4]
    size = len(table) + 4
    pages = (table + struct.pack("<L", 8 + size * page) for page in range(1, number))
    return first[:8] + b"".join(pages) + table + bytes(4) + bytes(8)
