"""How often a JPEG file passes over its picture."""

from __future__ import annotations

import re
from typing import Final

MAX_SCANS: Final = 100
"""What libtiff allows too. Encoders make a dozen; one of a few bytes may go over all pixels."""

_SCAN: Final = 0xDA
_END: Final = 0xD9
# None of those within a scan's data, which are stuffed bytes and restarts.
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def has_too_many_scans(data: bytes) -> bool:
    """Tells whether a JPEG file has more than ``MAX_SCANS`` scans.

    Those of thumbnails in its segments and of pictures behind its end do not count.
    """
    position, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, position)):
        position = marker.end()
        kind = data[position - 1]
        if kind == _END:
            break
        scans += kind == _SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return scans > MAX_SCANS
