"""Matroska files that lie, in their headers, their times and the elements around them."""

from __future__ import annotations

import struct
import zlib

from tests.support.ebml import (
    ATTACHMENTS,
    CHAPTERS,
    CLUSTER,
    CUES,
    SEEK_HEAD,
    SEGMENT,
    SIMPLE_BLOCK,
    TAG,
    TAGS,
    UNKNOWN,
    VOID,
    block,
    cluster,
    element,
    info,
    matroska,
    number,
    small,
    track,
)
from tests.support.isobmff import Liars

HUGE = b"\x01" + 6 * b"\xff" + b"\xfe"
"""A size of 2^56 - 2."""


def matroska_liars(pictures: list[bytes]) -> Liars:
    """Of ten pictures as JPEG; told in no time."""
    return {
        f"{name}.mkv": liar
        for made in (_headers, _tracks, _times, _elements, _lists, _packed)
        for name, liar in made(pictures).items()
    }


def matroska_bombs(pictures: list[bytes]) -> Liars:
    """Those that take seconds."""
    clip = _in_time(pictures)
    hidden = track(64, 48, _encoded(3, element(0x4255, bytes(10**7))))
    prefixed = cluster(*(block(pictures[0], ticks) for ticks in range(3000)))
    tiny = small(SIMPLE_BLOCK, b"\x81\0\0\x80x")
    return {
        "blocks over.mkv": (matroska(cluster((2**21 + 1) * tiny)), "too_large"),
        "30 GB of prefixes.mkv": (matroska(prefixed, tracks=[hidden]), None),
        "20,000 tags.mkv": (matroska(_tags(20_000), clip), None),
        "200,000 tags.mkv": (matroska(_tags(200_000), clip), "decode_timeout"),
        "50,000 chapters.mkv": (matroska(_chapters(50_000), clip), None),
        "voids.mkv": (matroska(4 * 10**6 * small(VOID, b""), clip), None),
    }


def _in_time(pictures: list[bytes]) -> bytes:
    return cluster(*(block(data, 100 * place) for place, data in enumerate(pictures)))


def _headers(pictures: list[bytes]) -> Liars:
    clip = _in_time(pictures)
    durations = {
        "no time": 0.0,
        "ages": 1e300,
        "negative time": -5.0,
        "time of NaN": float("nan"),
        "time without end": float("inf"),
    }
    scales: dict[str, tuple[int, str | None]] = {
        "no scale": (0, None),
        "scale of hours": (3600 * 10**9, "corrupt"),
        "scale of 2^63": (2**63, "corrupt"),
    }
    return {
        "honest": (matroska(clip), None),
        **{
            name: (matroska(clip, head=info(struct.pack(">d", duration))), None)
            for name, duration in durations.items()
        },
        **{
            name: (matroska(clip, head=info(scale=scale)), code)
            for name, (scale, code) in scales.items()
        },
    }


def _tracks(pictures: list[bytes]) -> Liars:
    def lasting(nanoseconds: int) -> bytes:
        return track(64, 48, element(0x23E383, number(nanoseconds)))

    many = [track(which=which) for which in range(1, 10_001)]
    liars: dict[str, tuple[list[bytes], str | None]] = {
        "no size": ([track(0, 0)], None),
        # FFmpeg takes pictures so much smaller than was said for fields of them.
        "16000 x 16000": ([track(16_000, 16_000)], "corrupt"),
        "huge size": ([track(2**31, 2**31)], None),
        "negative size": ([track(-64, -48)], None),
        "frames of 1 ns": ([lasting(1)], None),
        "frames of centuries": ([lasting(2**63)], "corrupt"),
        "frames of negative time": ([lasting(-1)], "corrupt"),
        "no tracks": ([], "no_video_stream"),
        "sound only": ([track(kind=2, codec=b"A_PCM/INT/LIT")], "no_video_stream"),
        "subtitles only": ([track(kind=17, codec=b"S_TEXT/UTF8")], "no_video_stream"),
        "no such codec": ([track(codec=b"V_NONE")], "unsupported_format"),
        "500 tracks of one number": (500 * [track()], None),
        "10,000 tracks": (many, None),
    }
    clip = _in_time(pictures)
    return {name: (matroska(clip, tracks=given), code) for name, (given, code) in liars.items()}


def _times(pictures: list[bytes]) -> Liars:
    places = range(len(pictures))
    liars: dict[str, tuple[list[int], str | None]] = {
        "times the same": ([5 for _ in places], None),
        "times backwards": ([900 - 100 * place for place in places], None),
        "times huge": ([2**62 + 100 * place for place in places], None),
        "times unsigned": ([2**64 - 1 - place for place in places], None),
        "times that overflow": ([2**60 * place for place in places], None),
        "times far apart": ([2**59 * place for place in places], "corrupt"),
        "times of five hours": ([1_800_000 * place for place in places], "too_large"),
    }
    early = cluster(*(block(data, 100 * place - 500) for place, data in enumerate(pictures)))
    return {
        "times negative": (matroska(early), None),
        **{
            name: (
                matroska(*(cluster(block(d), ticks=t) for d, t in zip(pictures, at, strict=True))),
                code,
            )
            for name, (at, code) in liars.items()
        },
    }


def _elements(pictures: list[bytes]) -> Liars:
    clip = _in_time(pictures)
    blocks = [block(data, 100 * place) for place, data in enumerate(pictures)]
    live = cluster(*blocks, size=UNKNOWN)

    def nested(name: int, inner: bytes = b"") -> bytes:
        for _ in range(2000):
            inner = element(name, inner)
        return inner

    endless = element(TAGS, 100_000 * (b"\x67\xc8" + UNKNOWN))
    return {
        "sizes unknown": (matroska(live, live, size=UNKNOWN), None),
        "sizes unknown within": (matroska(cluster(live, size=UNKNOWN), size=UNKNOWN), None),
        "clusters in clusters": (matroska(nested(CLUSTER, clip)), "corrupt"),
        "segments in segments": (matroska(nested(SEGMENT, clip)), None),
        "tags in tags": (matroska(element(TAGS, nested(TAG)), clip), None),
        "tags in tags without end": (matroska(endless, clip), None),
        "chapters in chapters": (matroska(element(CHAPTERS, nested(0xB6)), clip), None),
        "huge block": (matroska(clip, element(SIMPLE_BLOCK, size=HUGE)), None),
        "huge void": (matroska(element(VOID, size=HUGE), clip), None),
        "huge cluster": (matroska(cluster(*blocks, size=HUGE)), "truncated"),
        "zeros behind": (matroska(clip) + bytes(10_000), None),
        "block of no track": (matroska(clip, cluster(block(pictures[0], which=9))), None),
        "laces of nothing": (
            matroska(clip, cluster(100_000 * small(SIMPLE_BLOCK, b"\x81\0\0\x84\xff"))),
            None,
        ),
    }


def _lists(pictures: list[bytes]) -> Liars:
    clip = _in_time(pictures)
    itself = element(0x4DBB, element(0x53AB, number(SEEK_HEAD, 4)), element(0x53AC, number(0)))
    to_start = element(0xB7, element(0xF7, number(1)), element(0xF1, number(0)))
    cues = 1000 * element(0xBB, element(0xB3, number(0)), to_start)
    names = (element(0x466E, b"x"), element(0x4660, b"image/png"), element(0x465C, pictures[0]))
    files = 10_000 * element(0x61A7, *names)
    return {
        "seek head of itself": (matroska(element(SEEK_HEAD, 1000 * itself), clip), None),
        "cues to the start": (matroska(clip, element(CUES, cues)), None),
        "10,000 attachments": (matroska(element(ATTACHMENTS, files), clip), None),
        "1000 tags": (matroska(_tags(1000), clip), None),
        "1000 chapters": (matroska(_chapters(1000), clip), None),
    }


def _packed(pictures: list[bytes]) -> Liars:
    clip, zeros = _in_time(pictures), zlib.compress(bytes(2**27), 1)
    packed = cluster(*(block(zlib.compress(d), 100 * n) for n, d in enumerate(pictures)))
    bombs = cluster(*(block(zeros, 100 * n) for n in range(10)))
    prefix = _encoded(3, element(0x4255, bytes(10**6)))
    return {
        "packed": (matroska(packed, tracks=[track(64, 48, _encoded(0))]), None),
        "packed zeros": (matroska(bombs, tracks=[track(64, 48, _encoded(0))]), "corrupt"),
        "packed header of zeros": (
            matroska(clip, tracks=[track(64, 48, _encoded(0), element(0x63A2, zeros))]),
            "corrupt",
        ),
        "prefixes of 1 MB": (matroska(clip, tracks=[track(64, 48, prefix)]), None),
    }


def _encoded(algorithm: int, *more: bytes) -> bytes:
    """How blocks are packed: 0 with zlib, 3 less a prefix."""
    how = element(0x5034, element(0x4254, number(algorithm)), *more)
    return element(0x6D80, element(0x6240, how))


def _tags(count: int) -> bytes:
    """Each with a name of its own, which is held against those of all before it."""
    values = (element(0x45A3, b"%x" % n) + element(0x4487, b"x") for n in range(count))
    simple = (element(TAG, value) for value in values)
    return element(TAGS, element(0x7373, element(0x63C0), *simple))


def _chapters(count: int) -> bytes:
    """Each numbered lower than the one before, and so held against all of those."""
    atoms = (
        element(0xB6, element(0x73C4, number(count - n)), element(0x91, number(n)))
        for n in range(count)
    )
    return element(CHAPTERS, element(0x45B9, *atoms))
