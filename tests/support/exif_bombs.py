"""EXIF data that lead nowhere, to themselves, or to more than there is."""

from __future__ import annotations

import struct

_SHORT, _LONG, _RATIONAL, _SIGNED_LONG = 3, 4, 5, 9
_EXIF_IFD, _GPS_IFD, _X_RESOLUTION, _RESOLUTION_UNIT, _ORIENTATION = 34665, 34853, 282, 296, 274

_Entry = tuple[int, int, int, int]
"""Tag, type, count, and the value or where it is."""


def exif_bombs() -> dict[str, bytes]:
    """Blocks of EXIF by what is wrong with them; none says how the picture is turned."""
    many = [(tag, _LONG, 5000, 8) for tag in range(1, 5000)]
    return {
        "EXIF that holds itself": _exif(
            [(_EXIF_IFD, _LONG, 1, 8), (_GPS_IFD, _LONG, 1, 8)], after=8
        ),
        "EXIF in EXIF": b"Exif\0\0" * 5000,
        "EXIF of 65,535 tags, none there": b"II*\0\x08\0\0\0\xff\xff",
        "EXIF of 4,999 tags that overlap": _exif(many),
        "EXIF counts that overflow": _exif(
            [(_X_RESOLUTION, _RATIONAL, 2**32 - 1, 8), (_ORIENTATION, _SHORT, 2**31, 2**32 - 1)]
        ),
        "EXIF far away": b"II*\0\xff\xff\xff\xff",
        "EXIF at minus one": _exif([(_EXIF_IFD, _SIGNED_LONG, 1, 2**32 - 1)]),
        "EXIF over nothing": _exif(
            [(_X_RESOLUTION, _RATIONAL, 1, 50), (_RESOLUTION_UNIT, _SHORT, 1, 3)]
        )
        + bytes(64),
    }


def _exif(entries: list[_Entry], *, after: int = 0) -> bytes:
    table = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return struct.pack("<2sHLH", b"II", 42, 8, len(entries)) + table + struct.pack("<L", after)
