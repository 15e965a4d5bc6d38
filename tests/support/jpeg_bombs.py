"""JPEG files that cost more than they weigh."""

from __future__ import annotations

import struct

from tests.support.exif_bombs import exif_bombs

_BASELINE, _PROGRESSIVE, _HIERARCHICAL, _ARITHMETIC = 0xC0, 0xC2, 0xC5, 0xC9
# Tables of one code each: a single bit, for a difference of none and for the end of a block.
_CODES = b"".join(bytes([kind, 1, *bytes(15), 0]) for kind in (0x00, 0x10))
# The one code of refining scans: so many of the coming blocks have nothing new.
_END_OF_BLOCKS = bytes([0x10, 1, *bytes(15), 0xE0])
_LONGEST_RUN = 2**15 - 1


def jpeg_bombs() -> dict[str, tuple[bytes, str | None]]:
    """Contents and error codes by file name."""
    small = _header(8, 8) + _scan(b"\x3f")
    thrice = _header(8, 8, planes=3)
    profile = [
        _segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(65_000)) for n in range(255)
    ]
    exif = [_segment(0xE1, b"Exif\0\0" + bytes(65_000))] * 400
    scans = b"\xff\xda" * 5000
    return {
        "16,000 x 16,000.jpg": (jpeg_of(16_000, 16_000), "too_large"),
        "65,500 x 65,500.jpg": (jpeg_of(65_500, 65_500), "too_large"),
        "13,000 x 13,000.jpg": (jpeg_of(13_000, 13_000)[:-2], "truncated"),
        "13,000 x 13,000 in colour.jpg": (jpeg_of(13_000, 13_000, planes=3)[:-2], "truncated"),
        "no height.jpg": (jpeg_of(8, 0), "corrupt"),
        "arithmetic.jpg": (_jpeg(_header(8, 8, sof=_ARITHMETIC), _scan()), None),
        "hierarchical.jpg": (_jpeg(_header(8, 8, sof=_HIERARCHICAL), _scan()), "corrupt"),
        "100 scans.jpg": (many_scans(8, 100), None),
        "101 scans.jpg": (many_scans(8, 101), "too_large"),
        "1,000 scans of 13,000 x 13,000.jpg": (many_scans(13_000, 1000), "too_large"),
        "1,000 plain scans.jpg": (_jpeg(thrice, _scan() * 1000), "too_large"),
        # Of these libjpeg reads one, and then is at odds with the file.
        "1,000 scans of all.jpg": (_jpeg(thrice, _scan(planes=3) * 1000), "corrupt"),
        "1,000 scans of all of 8,000 x 8,000.jpg": (
            _jpeg(_header(8000, 8000), _scan() * 1000),
            "corrupt",
        ),
        "scans in a thumbnail.jpg": (_jpeg(_segment(0xE1, b"Exif\0\0" + scans), small), None),
        "scans behind the end.jpg": (_jpeg(small) + scans, None),
        "restarts of 65,535.jpg": (_jpeg(_segment(0xDD, b"\xff\xff"), small), None),
        "500,000 restarts.jpg": (
            _jpeg(_segment(0xDD, b"\0\1"), _header(8, 8), _scan(b"\xff\xd0" * 500_000)),
            None,
        ),
        "16 MB of profile.jpg": (_jpeg(*profile, small), None),
        "26 MB of EXIF.jpg": (_jpeg(*exif, small), None),
        "65,000 comments.jpg": (_jpeg(_segment(0xFE, b"") * 65_000, small), None),
        "2 MB of nothing.jpg": (b"\xff\xd8\xff" + bytes(2_000_000), "truncated"),
        **{
            f"{name}.jpg": (_jpeg(_segment(0xE1, b"Exif\0\0" + tags), small), None)
            for name, tags in exif_bombs().items()
        },
    }


def jpeg_of(width: int, height: int, *, planes: int = 1) -> bytes:
    """A picture whose scan holds nothing, which decoders take for grey."""
    return _jpeg(_header(width, height, planes=planes), _scan(planes=planes))


def refined_jpeg(width: int, height: int) -> bytes:
    """A progressive picture in colour, of which libjpeg keeps every coefficient."""
    return _jpeg(_header(width, height, sof=_PROGRESSIVE, planes=3), _scan(last=0))


def many_scans(side: int, scans: int) -> bytes:
    """Most scans look at every coefficient for one more bit of it, and say that there is none."""
    blocks = (-(-side // 8)) ** 2
    bits = ("0" + "1" * 14) * -(-blocks // _LONGEST_RUN)
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return _jpeg(
        _header(side, side, sof=_PROGRESSIVE),
        _scan(bytes(-(-blocks // 8)), last=0),
        _segment(0xC4, _END_OF_BLOCKS),
        _scan(run, first=1, bits=0x10) * (scans - 1),
    )


def _jpeg(*parts: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _header(width: int, height: int, *, sof: int = _BASELINE, planes: int = 1) -> bytes:
    kinds = b"".join(bytes([number, 0x11, 0]) for number in range(1, planes + 1))
    frame = struct.pack(">BHHB", 8, height, width, planes) + kinds
    return _segment(0xDB, b"\0" + b"\1" * 64) + _segment(sof, frame) + _segment(0xC4, _CODES)


def _scan(
    data: bytes = b"", *, first: int = 0, last: int = 63, bits: int = 0, planes: int = 1
) -> bytes:
    """Coefficients ``first`` to ``last`` of the first planes; ``bits`` says which bits of them."""
    kinds = b"".join(bytes([number, 0]) for number in range(1, planes + 1))
    return _segment(0xDA, bytes([planes]) + kinds + bytes([first, last, bits])) + data
