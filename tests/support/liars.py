"""Clips that lie, or that become far more than their bytes, each with the code of its error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.clips import PATTERN, X264, ClipMaker, real_clip
from tests.support.isobmff import Liars, box
from tests.support.liars_codecs import codec_bombs, codec_liars
from tests.support.liars_matroska import matroska_bombs, matroska_liars
from tests.support.liars_mp4 import mp4_bombs, mp4_liars
from tests.support.liars_streams import avi_liars, transport_liars

CUTS = 200
PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"udta")


@pytest.fixture(scope="session")
def liars(clips: ClipMaker) -> Liars:
    """Those that are told in no time."""
    pictures = _pictures()
    stream = clips.make("liar.ts", *PATTERN, *X264).read_bytes()
    return {
        **mp4_liars(pictures),
        **matroska_liars(pictures),
        **avi_liars(pictures),
        **transport_liars(stream),
        **codec_liars(clips, pictures),
    }


@pytest.fixture(scope="session")
def bombs(clips: ClipMaker) -> Liars:
    """Those that take seconds, or as long as they may."""
    pictures = _pictures()
    return {**mp4_bombs(pictures), **matroska_bombs(pictures), **codec_bombs(clips)}


@pytest.fixture(scope="session")
def cuts(clips: ClipMaker) -> Liars:
    """A real clip with its index first, and last, each cut at 200 places; and what ends in air."""
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 50, "-an", "-vf", "scale=96:-2")
    last = clips.make("index last.mp4", *source, *X264).read_bytes()
    first = clips.make("index first.mp4", *source, *X264, "-movflags", "faststart").read_bytes()
    air = first + box(b"free", bytes(1000))
    return {
        **{f"index last {at}.mp4": (last[:at], _code_of_cut(at)) for at in _places(last)},
        **{f"index first {at}.mp4": (first[:at], _code_of_cut(at)) for at in _places(first)},
        **{f"air {at}.mp4": (air[:at], None) for at in range(len(first), len(air), 100)},
    }


def _pictures() -> list[bytes]:
    pictures = []
    for seed in range(10):
        levels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).resize((64, 48)).save(file, "JPEG", quality=80)
        pictures.append(file.getvalue())
    return pictures


def _code_of_cut(size: int) -> str:
    # Eight bytes say that it is an MP4 file, if not how long.
    return "empty" if size == 0 else "unsupported_format" if size < 8 else "truncated"


def _places(data: bytes) -> list[int]:
    """Where boxes begin and end, a byte before and after, and evenly in between."""
    edges = [place for begin, end in _boxes(data, 0, len(data)) for place in (begin, end)]
    near = {place + step for place in edges for step in (-1, 0, 1)} & set(range(len(data)))
    places = set(sorted(near)[: CUTS // 2])
    places.update(int(at) for at in np.linspace(0, len(data) - 1, CUTS - len(places)))
    return sorted(places)


def _boxes(data: bytes, at: int, end: int) -> list[tuple[int, int]]:
    found = []
    while at < end:
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((at, at + size))
        if data[at + 4 : at + 8] in PARENTS:
            found += _boxes(data, at + 8, at + size)
        at += size
    return found
