"""Files of formats that Pillow reads and that are not decoded here, called photos; and mixtures."""

from __future__ import annotations

import struct

from tests.support.animation_bombs import gif, pixel
from tests.support.jpeg_bombs import jpeg_of
from tests.support.png_bombs import png_of

_ENTITIES = b'<!DOCTYPE svg [<!ENTITY a "a"><!ENTITY b "&a;&a;&a;&a;">]><svg>&b;</svg>'
_ZIP = b"PK\3\4" + bytes(26) + b"PK\5\6" + bytes(18)


def foreign_files() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name."""
    jpeg, png = jpeg_of(8, 8), png_of(8, 8)
    entry = struct.pack("<4B2H2L", 0, 0, 0, 0, 1, 32, len(png), 22)
    icon = b"\0\0\1\0\1\0" + entry + png
    heads = {
        "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
        "CUR": icon[:2] + b"\2" + icon[3:],
        "DDS": b"DDS \x7c\0\0\0" + bytes(120),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "FITS": b"SIMPLE  =                    T".ljust(2880),
        "FLI": bytes(4) + b"\x11\xaf\xff\xff" + bytes(120),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "ICNS": b"icns" + struct.pack(">L4sL", 2**32 - 1, b"ic10", 2**32 - 1) + png,
        "ICO": icon,
        "ICO of 65,535": b"\0\0\1\0\xff\xff" + entry * 65_535 + png,
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
        "JPEG 2000 stream": b"\xff\x4f\xff\x51\0\x2f" + bytes(64),
        "PCX": b"\n\5\1\x08" + bytes(124),
        "PDF": b"%PDF-1.7\n1 0 obj<</Length 4294967295>>stream\n" + jpeg,
        "PPM": b"P6 65535 65535 255\n",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">H2L2H", 3, 30_000, 30_000, 8, 3),
        "QOI": b"qoif" + struct.pack(">2L2B", 30_000, 30_000, 3, 0),
        "SGI": b"\1\xda\1\1\0\3\xff\xff\xff\xff\0\3" + bytes(500),
        "SVG": _ENTITIES,
        "TGA": b"\0\0\n" + bytes(9) + b"\xff\xff\xff\xff\x18\0",
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(200),
        "XPM": b'/* XPM */\nstatic char * a[] = {\n"65535 65535 2 1",\n',
        "ZIP before a JPEG": _ZIP + jpeg,
        "TIFF with its bytes in disorder": b"MM\x2a\0\0\0\0\x08" + bytes(64),
        "a text before a JPEG": b"\n" + jpeg,
    }
    mixed = {
        "GIF and JAR.gif": gif(1, 1, pixel()) + _ZIP,
        "JPEG and ZIP.jpg": jpeg + _ZIP,
        "JPEG in JPEG in JPEG.jpg": _nested(jpeg, 300),
        "1,000 pictures in one.jpg": jpeg * 1000,
        "PNG and PDF.png": png + b"%PDF-1.7\n",
    }
    return {f"{name}.jpg": (data, "unsupported_format") for name, data in heads.items()} | {
        name: (data, None) for name, data in mixed.items()
    }


def _nested(jpeg: bytes, depth: int) -> bytes:
    """Every one is in a segment of the one around it, as thumbnails are."""
    whole = jpeg
    for _ in range(depth):
        whole = jpeg[:2] + struct.pack(">HH", 0xFFE1, len(whole) + 2) + whole + jpeg[2:]
    return whole
