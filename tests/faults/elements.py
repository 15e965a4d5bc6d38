"""The elements that files are made of, taken apart and put together again with sizes made right."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Within a scan, 255 is followed by 0 or by the number of a restart.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)


@dataclass(frozen=True)
class Element:
    """A chunk, segment or box: its name, and what is in it."""

    name: bytes
    body: bytes


@dataclass(frozen=True)
class Syntax:
    """How a format writes its elements.

    Attributes:
        magic: What is in front of the first one.
        parse: Takes the elements of a file or of a body apart; what is none is one without a name.
        write: An element's bytes, its size and checksum right.
        nested: Names of those that hold others, and the bytes in front of these.
    """

    magic: bytes
    parse: Callable[[bytes], Iterator[Element]]
    write: Callable[[Element], bytes]
    nested: dict[bytes, int] = field(default_factory=dict)


def _png_chunks(data: bytes) -> Iterator[Element]:
    position = 0
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        yield Element(data[position + 4 : position + 8], data[position + 8 : position + 8 + size])
        position += 12 + size


def _write_png(chunk: Element) -> bytes:
    crc = zlib.crc32(chunk.name + chunk.body).to_bytes(4, "big")
    return len(chunk.body).to_bytes(4, "big") + chunk.name + chunk.body + crc


def _jpeg_segments(data: bytes) -> Iterator[Element]:
    position = 0
    while data[position : position + 1] == b"\xff" and data[position + 1 :][:1] != b"\xd9":
        end = position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        yield Element(data[position : position + 2], data[position + 4 : end])
        position = end
        if data[position : position + 1] != b"\xff":
            marker = _AFTER_SCAN.search(data, position)
            end = marker.start() if marker else len(data)
            yield Element(b"", data[position:end])
            position = end
    yield Element(b"", data[position:])


def _write_jpeg(segment: Element) -> bytes:
    size = (len(segment.body) + 2).to_bytes(4, "big")[-2:]
    return segment.name + size + segment.body if segment.name else segment.body


def _riff_chunks(data: bytes) -> Iterator[Element]:
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        yield Element(data[position : position + 4], data[position + 8 : position + 8 + size])
        position += 8 + size + size % 2


def _write_riff(chunk: Element) -> bytes:
    size = len(chunk.body).to_bytes(4, "little")
    return chunk.name + size + chunk.body + bytes(len(chunk.body) % 2)


def _mp4_boxes(data: bytes) -> Iterator[Element]:
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8:
            break
        yield Element(data[position + 4 : position + 8], data[position + 8 : position + size])
        position += size
    if position < len(data):
        yield Element(b"", data[position:])


def _write_mp4(box: Element) -> bytes:
    if not box.name:
        return box.body
    return (8 + len(box.body)).to_bytes(4, "big") + box.name + box.body


def _ebml_elements(data: bytes) -> Iterator[Element]:
    position = 0
    while position + 2 <= len(data):
        name_end = position + 9 - data[position].bit_length()
        length = 9 - data[name_end : name_end + 1].ljust(1, b"\1")[0].bit_length()
        start = name_end + length
        size = max(0, int.from_bytes(data[name_end:start], "big") - (1 << 7 * length))
        yield Element(data[position:name_end], data[start : start + size])
        position = start + size


def _write_ebml(element: Element) -> bytes:
    return element.name + (len(element.body) | 1 << 56).to_bytes(8, "big") + element.body


JPEG = Syntax(b"\xff\xd8", _jpeg_segments, _write_jpeg)
PNG = Syntax(b"\x89PNG\r\n\x1a\n", _png_chunks, _write_png)
WEBP = Syntax(b"", _riff_chunks, _write_riff, {b"RIFF": 4, b"ANMF": 16})
MP4 = Syntax(
    b"",
    _mp4_boxes,
    _write_mp4,
    dict.fromkeys([b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"], 0)
    | {b"stsd": 8, b"dref": 8, b"meta": 4, b"avc1": 78, b"hvc1": 78, b"hev1": 78, b"mp4v": 78},
)
# EBML, Segment, SeekHead, Seek, Info, Tracks, TrackEntry, Video, Colour, Cluster, BlockGroup, Cues,
# CuePoint, CueTrackPositions, Tags, Tag.
_MASTERS = "1a45dfa3 18538067 114d9b74 4dbb 1549a966 1654ae6b ae e0 55b0 1f43b675 a0 1c53bb6b bb b7"
MATROSKA = Syntax(
    b"",
    _ebml_elements,
    _write_ebml,
    dict.fromkeys(map(bytes.fromhex, f"{_MASTERS} 1254c367 7373".split()), 0),
)
