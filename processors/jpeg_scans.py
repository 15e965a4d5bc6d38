"""How often a JPEG file passes over its picture, and what stands before it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MAX_SCANS: Final = 100
"""What libtiff allows too. Encoders make a dozen; one of a few bytes may go over all pixels."""

TABLES: Final = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)
"""Segments that may stand before a frame or a scan: tables, restarts, applications', comments."""

_SEQUENTIAL: Final = (0xC0, 0xC1)
_SCAN: Final = 0xDA
_END: Final = 0xD9
# None of those within a scan's data, which are stuffed bytes and restarts.
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Kinds of the segments that begin a JPEG file, and where what they hold begins.

    It ends where something stands between two of them, as it does behind a scan's.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        yield data[position + 1], position + 4
        size = int.from_bytes(data[position + 2 : position + 4], "big")
        if size < 2:
            return
        position += 2 + size


def has_too_many_scans(data: bytes) -> bool:
    """Tells whether a JPEG file has more than ``MAX_SCANS`` scans.

    Those of thumbnails in its segments and of pictures behind its end do not count. Nor do any
    behind a first one that has all there is: libjpeg reads none of them.
    """
    if _is_whole_in_one(data):
        return False
    position, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, position)):
        position = marker.end()
        kind = data[position - 1]
        if kind == _END:
            break
        scans += kind == _SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return scans > MAX_SCANS


def _is_whole_in_one(data: bytes) -> bool:
    """Whether the first scan of a sequential frame names as many components as the frame."""
    components = b""
    for kind, place in segments(data):
        if kind in _SEQUENTIAL:
            components = data[place + 5 : place + 6]
        elif kind not in TABLES:
            return kind == _SCAN and data[place : place + 1] == components
    return False
