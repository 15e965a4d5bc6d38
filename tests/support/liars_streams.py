"""AVI files and transport streams that lie."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.isobmff import Liars, u16

MOST = 2**32 - 1
LISTED = b"00dc"
PACKET = 188


def avi_liars(pictures: list[bytes]) -> Liars:
    """Of ten pictures as JPEG."""
    one = len(pictures[0])
    lists = b"".join(b"LIST" + _u32(4 + 12 * n) + b"rec " for n in range(50_000, 0, -1))
    liars: dict[str, tuple[bytes, str | None]] = {
        "honest": (avi(pictures), None),
        "no size": (avi(pictures, size=(0, 0)), None),
        # FFmpeg takes pictures so much smaller than was said for fields of them.
        "16000 x 16000": (avi(pictures, size=(16_000, 16_000)), "corrupt"),
        "huge size": (avi(pictures, size=(2**31 - 1, 2**31 - 1)), None),
        "negative size": (avi(pictures, size=(-64, -48)), None),
        "0 fps": (avi(pictures, rate=(1, 0)), None),
        "1 over 0 fps": (avi(pictures, rate=(0, 1)), None),
        "1e9 fps": (avi(pictures, rate=(1, 10**9)), None),
        "negative fps": (avi(pictures, rate=(1, -10)), None),
        "a frame a century": (avi(pictures, rate=(MOST, 1)), "corrupt"),
        "no frames": (avi(pictures, total=0), None),
        "too few frames": (avi(pictures, total=2), None),
        "too many frames": (avi(pictures, total=1000), None),
        "2^32 frames": (avi(pictures, total=MOST), None),
        "no changes": (avi([*pictures, *[b""] * 1000]), None),
        "index outside": (avi(pictures, index=[(2**31, 10**6)] * 10), "truncated"),
        "index of one place": (avi(pictures, index=[(4, one)] * 10**5), None),
        "100 streams": (avi(pictures, streams=100), None),
        "10,000 streams": (avi(pictures, streams=10_000), "too_large"),
        "lists in lists": (avi(pictures, more=lists), None),
        "list of 4 GiB": (avi(pictures, more=b"LIST" + _u32(MOST) + b"rec "), None),
    }
    return {f"{name}.avi": liar for name, liar in liars.items()}


def avi(
    frames: Sequence[bytes],
    *,
    size: tuple[int, int] = (64, 48),
    rate: tuple[int, int] = (1, 10),
    total: int | None = None,
    streams: int = 1,
    index: Sequence[tuple[int, int]] | None = None,
    more: bytes = b"",
) -> bytes:
    """Motion JPEG; ``rate`` is the scale and the rate, ``index`` the offsets and sizes."""
    total = len(frames) if total is None else total
    main = _u32(100_000, 0, 0, 0x10, total, 0, streams, 0, *size, 0, 0, 0, 0)
    strh = b"vidsMJPG" + _u32(0, 0, 0, *rate, 0, total, 0, -1, 0, 0, 0)
    strf = _u32(40, *size) + b"\1\0\x18\0MJPG" + _u32(0, 0, 0, 0, 0)
    strl = _list(b"strl", _chunk(b"strh", strh), _chunk(b"strf", strf))
    movi = _list(b"movi", *(_chunk(LISTED, frame) for frame in frames), more)
    if index is None:
        index, at = [], 4
        for frame in frames:
            index.append((at, len(frame)))
            at += 8 + len(frame) + len(frame) % 2
    idx1 = _chunk(b"idx1", *(LISTED + _u32(0x10, *entry) for entry in index))
    contents = _list(b"hdrl", _chunk(b"avih", main), *[strl] * streams), movi, idx1
    return _chunk(b"RIFF", b"AVI ", *contents)


def _u32(*numbers: int) -> bytes:
    return b"".join((number % 2**32).to_bytes(4, "little") for number in numbers)


def _chunk(kind: bytes, *contents: bytes) -> bytes:
    data = b"".join(contents)
    return kind + _u32(len(data)) + data + bytes(len(data) % 2)


def _list(kind: bytes, *contents: bytes) -> bytes:
    return _chunk(b"LIST", kind, *contents)


def transport_liars(clip: bytes) -> Liars:
    """Of a real transport stream of ten frames."""

    def timed(first: int, step: int) -> bytes:
        return _retimed(clip, first=first, step=step)

    nothing = b"\x47\x1f\xff\x10" + bytes(PACKET - 4)
    liars: dict[str, tuple[bytes, str | None]] = {
        "honest": (clip, None),
        "times wrap": (timed(2**33 - 5 * 3600, 3600), None),
        "times backwards": (timed(2**31, -3600), None),
        "times the same": (timed(90_000, 0), None),
        "times far apart": (timed(0, 2**31), None),
        "twice": (2 * clip, None),
        "nothing first": (20_000 * nothing + clip, None),
        # There are no numbers left for the clip's own.
        "8000 streams": (_table_of_programs() + clip, "corrupt"),
        "8000 streams of nothing": (20 * _table_of_programs(), "corrupt"),
    }
    return {f"{name}.ts": liar for name, liar in liars.items()}


def _retimed(clip: bytes, *, first: int, step: int) -> bytes:
    """Frames shown at other times, in ticks of 90 kHz, and decoded whenever."""
    packets = [clip[at : at + PACKET] for at in range(0, len(clip), PACKET)]
    number = 0
    for place, packet in enumerate(packets):
        at = packet.find(b"\0\0\1\xe0")
        if at < 0 or not packet[1] & 0x40:
            continue
        time = (first + number * step) % 2**33
        stamp = bytes([0x21 | time >> 29 & 0xE]) + u16(time >> 15 << 1 | 1, time << 1 | 1)
        size = packet[at + 8]
        stamps = bytes([0x80, size]) + stamp.ljust(size, b"\xff")
        packets[place] = packet[: at + 7] + stamps + packet[at + 9 + size :]
        number += 1
    return b"".join(packets)


def _table_of_programs(programs: int = 40, streams: int = 200) -> bytes:
    """Tables of as many streams as there are numbers for."""
    pmts = range(32, 32 + programs)
    pat = b"".join(u16(number + 1, 0xE000 | pid) for number, pid in enumerate(pmts))
    packets = [_section(0, 0, pat)]
    for number, pid in enumerate(pmts):
        first = 100 + number * streams
        listed = b"".join(b"\x1b" + u16(0xE000 | n, 0xF000) for n in range(first, first + streams))
        packets.append(_section(pid, 2, u16(0xE000 | first, 0xF000) + listed, number + 1))
    return b"".join(packets)


def _section(pid: int, table: int, body: bytes, which: int = 1) -> bytes:
    head = u16(which) + b"\xc1\0\0"
    section = bytes([table]) + u16(0xB000 | len(head) + len(body) + 4) + head + body
    section += _crc(section).to_bytes(4, "big")
    packets, data = [], b"\0" + section
    for number, at in enumerate(range(0, len(data), PACKET - 4)):
        part = data[at : at + PACKET - 4]
        start = 0x4000 if number == 0 else 0
        head = b"\x47" + u16(start | pid) + bytes([0x10 | number % 16])
        packets.append(head + part + b"\xff" * (PACKET - 4 - len(part)))
    return b"".join(packets)


def _crc(data: bytes) -> int:
    crc = MOST
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & MOST
    return crc
