"""Whether a video file is all there, by the sizes that its container states."""

from __future__ import annotations

import re
from typing import Final

from processors.formats import VideoFormat

_SEGMENT: Final = 0x18538067  # the element of Matroska that holds all others
_CLUSTER: Final = 0x1F43B675  # one that holds a few seconds of all streams
_NO_ELEMENT: Final = 0


def is_cut(data: bytes | memoryview, video_format: VideoFormat) -> bool:
    """Tells whether the file ends before its container does.

    MPEG streams and FLV state no size.
    """
    if video_format == "MP4":
        return _is_mp4_cut(data)
    if video_format == "AVI":
        return _is_avi_cut(data)
    if video_format == "ASF":
        return _is_asf_cut(data)
    if video_format == "Matroska":
        segment = _find_segment(data)
        return segment is not None and segment[1] > len(data)
    return False


def is_damaged(data: bytes | memoryview, video_format: VideoFormat) -> bool:
    """Tells whether the streams' data do not fit together, the end included.

    It is asked of Matroska only, whose demuxer passes over damage without a word.
    """
    segment = _find_segment(data) if video_format == "Matroska" else None
    if segment is None:
        return False
    position, end = segment[0], min(segment[1], len(data))
    while position < end:
        element, start, position = _read_element(data, position)
        if position == start:  # its size is not known: it goes on to the next one of its kind
            return False
        if position > end and element in (_CLUSTER, _NO_ELEMENT):
            return True
        while element == _CLUSTER and start < position:
            _, _, start = _read_element(data, start)
        if start > position:
            return True
    return False


def _is_mp4_cut(data: bytes | memoryview) -> bool:
    position = 0
    missing = {b"moov", b"mdat"}
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        missing.discard(bytes(data[position + 4 : position + 8]))
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0 is the rest of the file, the others are no boxes
            break
        position += size
    # What was recorded but never finished has no index; frames behind it may all be gone.
    is_without_frames = b"mdat" in missing and re.search(b"trak", data) is not None
    return position > len(data) or b"moov" in missing or is_without_frames


def _is_avi_cut(data: bytes | memoryview) -> bool:
    position = 0
    while data[position : position + 4] == b"RIFF":
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if size == 0:  # not filled in
            return False
        position += 8 + size
    return position > len(data)


def _is_asf_cut(data: bytes | memoryview) -> bool:
    position = 0
    while position + 24 <= len(data):
        size = int.from_bytes(data[position + 16 : position + 24], "little")
        if size < 24:  # 0 is a live recording, the others are no objects
            break
        position += size
    return position > len(data)


def _find_segment(data: bytes | memoryview) -> tuple[int, int] | None:
    """Where the contents of a Matroska file begin and end; None where it does not say."""
    position = 0
    while position < len(data):
        element, start, position = _read_element(data, position)
        if element == _SEGMENT:
            return None if position == start else (start, position)
    return position, position


def _read_element(data: bytes | memoryview, position: int) -> tuple[int, int, int]:
    """An element's name, and the places where its contents begin and end.

    Contents of unknown size end where they begin; what is no element never ends.
    """
    head = bytes(data[position : position + 16])
    name_length = 9 - head[0].bit_length() if head else 9
    size_length = 9 - head[name_length].bit_length() if name_length < len(head) else 9
    start = position + name_length + size_length
    if name_length > 4 or size_length > 8 or start > len(data):
        return _NO_ELEMENT, position, len(data) + 1
    size = int.from_bytes(head[name_length : name_length + size_length], "big")
    size -= 1 << 7 * size_length  # the marker of its length
    is_unknown = size == (1 << 7 * size_length) - 1
    name = int.from_bytes(head[:name_length], "big")
    return name, start, start if is_unknown else start + size
