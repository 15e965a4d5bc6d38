"""Matroska files element by element, each of which may say what it likes."""

from __future__ import annotations

from collections.abc import Sequence

HEADER = bytes.fromhex("1a45dfa3 93 4282 88 6d6174726f736b61 4287 81 04 4285 81 02")
SEGMENT, CLUSTER, INFO, TRACKS, TAGS = 0x18538067, 0x1F43B675, 0x1549A966, 0x1654AE6B, 0x1254C367
CHAPTERS, ATTACHMENTS, SEEK_HEAD, CUES, VOID = 0x1043A770, 0x1941A469, 0x114D9B74, 0x1C53BB6B, 0xEC
SIMPLE_BLOCK, TIMECODE, TRACK, TAG = 0xA3, 0xE7, 0xAE, 0x67C8
UNKNOWN = b"\x01" + 7 * b"\xff"


def number(value: int, size: int = 8) -> bytes:
    return (value % 2 ** (8 * size)).to_bytes(size, "big")


def element(name: int, *contents: bytes, size: bytes | None = None) -> bytes:
    """An element; its size is 8 bytes long, and that of its contents unless another is given."""
    data = b"".join(contents)
    length = (name.bit_length() + 7) // 8
    size = size or (len(data) | 1 << 56).to_bytes(8, "big")
    return name.to_bytes(length, "big") + size + data


def small(name: int, content: bytes) -> bytes:
    """An element of fewer than 127 bytes, whose size takes one."""
    return element(name, content, size=bytes([0x80 | len(content)]))


def info(duration: bytes = b"", scale: int = 1_000_000) -> bytes:
    parts = [element(0x2AD7B1, number(scale))]
    return element(INFO, *parts, *([element(0x4489, duration)] if duration else []))


def track(
    width: int = 64,
    height: int = 48,
    *more: bytes,
    kind: int = 1,
    codec: bytes = b"V_MJPEG",
    which: int = 1,
) -> bytes:
    video = element(0xE0, element(0xB0, number(width)), element(0xBA, number(height)))
    names = (
        element(0xD7, number(which)),
        element(0x73C5, number(which)),
        element(0x83, bytes([kind])),
    )
    return element(TRACK, *names, element(0x86, codec), video, *more)


def block(data: bytes, ticks: int = 0, *, which: int = 1, flags: int = 0x80) -> bytes:
    head = bytes([0x80 | which]) + number(ticks, 2) + bytes([flags])
    return element(SIMPLE_BLOCK, head, data)


def cluster(*blocks: bytes, ticks: int = 0, size: bytes | None = None) -> bytes:
    return element(CLUSTER, element(TIMECODE, number(ticks)), *blocks, size=size)


def matroska(
    *clusters: bytes,
    tracks: Sequence[bytes] = (track(),),
    head: bytes = info(),
    size: bytes | None = None,
) -> bytes:
    """A file of clusters, after what describes them."""
    return HEADER + element(SEGMENT, head, element(TRACKS, *tracks), *clusters, size=size)
