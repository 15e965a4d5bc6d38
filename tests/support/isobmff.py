"""MP4 files box by box, each of which may say what it likes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

Liars = dict[str, tuple[bytes, str | None]]
"""Contents and error codes by file name; None where a clip is harmless."""

MATRIX = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
FTYP = b"\0\0\0\x14ftypqt  \0\0\0\0qt  "
MDAT_AT = len(FTYP) + 8
"""Where the first sample of a ``movie`` begins."""


def u16(*numbers: int) -> bytes:
    return b"".join((number % 2**16).to_bytes(2, "big") for number in numbers)


def u32(*numbers: int) -> bytes:
    return b"".join((number % 2**32).to_bytes(4, "big") for number in numbers)


def u64(*numbers: int) -> bytes:
    return b"".join((number % 2**64).to_bytes(8, "big") for number in numbers)


def box(kind: bytes, *contents: bytes) -> bytes:
    data = b"".join(contents)
    return u32(8 + len(data)) + kind + data


def full_box(kind: bytes, *contents: bytes, version: int = 0) -> bytes:
    return box(kind, u32(version << 24), *contents)


def table(kind: bytes, *rows: Sequence[int], count: int | None = None, version: int = 0) -> bytes:
    """A box of rows of 32-bit numbers, and how many rows it says that there are."""
    numbers = b"".join(u32(*row) for row in rows)
    return full_box(kind, u32(len(rows) if count is None else count), numbers, version=version)


def stsd(codec: bytes = b"jpeg", width: int = 64, height: int = 48, *extensions: bytes) -> bytes:
    entry = (
        *(bytes(6), u16(1), bytes(16), u16(width, height), u32(72 << 16, 72 << 16, 0), u16(1)),
        *(bytes(32), u16(24, -1), *extensions),
    )
    return full_box(b"stsd", u32(1), box(codec, *entry))


def stsz(*sizes: int, each: int = 0, count: int | None = None) -> bytes:
    count = len(sizes) if count is None else count
    return full_box(b"stsz", u32(each, count, *sizes))


def mvhd(duration: int = 1000, scale: int = 1000) -> bytes:
    tail = (u32(1 << 16), u16(1 << 8), bytes(10), u32(*MATRIX), bytes(24), u32(2))
    return full_box(b"mvhd", u32(0, 0, scale, duration), *tail)


def tkhd(width: int = 64, height: int = 48, duration: int = 1000) -> bytes:
    tail = (bytes(8), u16(0, 0, 0, 0), u32(*MATRIX), u32(width << 16, height << 16))
    return full_box(b"tkhd", u32(0, 0, 1, 0, duration), *tail)


def mdhd(duration: int = 10_000, scale: int = 10_000) -> bytes:
    return full_box(b"mdhd", u32(0, 0, scale, duration), u16(0, 0))


def hdlr(kind: bytes = b"vide") -> bytes:
    return full_box(b"hdlr", b"mhlr", kind, bytes(13))


def trak(sizes: Sequence[int], first: int = MDAT_AT, **boxes: bytes) -> bytes:
    """A track of samples that lie one after the other, ten a second.

    Args:
        sizes: Bytes of each.
        first: Where the first one begins.
        boxes: What stands in the place of the boxes of these names; nothing where empty.
    """
    offsets = [first + sum(sizes[:number]) for number in range(len(sizes))]
    given = {
        "tkhd": tkhd(),
        "mdhd": mdhd(1000 * len(sizes)),
        "hdlr": hdlr(),
        "stsd": stsd(),
        "stts": table(b"stts", (len(sizes), 1000)),
        "stsc": table(b"stsc", (1, 1, 1)),
        "stsz": stsz(*sizes),
        "stco": table(b"stco", *((offset,) for offset in offsets)),
        **boxes,
    }
    stbl = b"".join(box for name, box in given.items() if name not in _AROUND_TABLES)
    minf = box(b"minf", full_box(b"vmhd", bytes(8)), box(b"stbl", stbl))
    mdia = box(b"mdia", given["mdhd"], given["hdlr"], minf)
    return box(b"trak", given["tkhd"], given.get("edts", b""), mdia)


_AROUND_TABLES = ("tkhd", "edts", "mdhd", "hdlr")


def movie(samples: Sequence[bytes], *traks: bytes, head: bytes = mvhd(), **boxes: bytes) -> bytes:
    """A file of samples, and of a track of them unless other ones are given."""
    traks = traks or (trak([len(sample) for sample in samples], **boxes),)
    return FTYP + box(b"mdat", *samples) + box(b"moov", head, *traks)


def compressed(clip: bytes) -> bytes:
    """The same file with its index packed."""
    start = clip.index(b"moov") - 4
    moov = clip[start:]
    packed = box(b"cmvd", u32(len(moov)), zlib.compress(moov, 1))
    return clip[:start] + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed))
