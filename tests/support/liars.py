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
def clip_bombs(clips: ClipMaker) -> Liars:
    """Those that take seconds, or as long as they may."""
    pictures = _pictures()
    return {**mp4_bombs(pictures), **matroska_bombs(pictures), **codec_bombs(clips)}


@pytest.fixture(scope="session")
def cuts(clips: ClipMaker) -> Liars:
    """A real clip with its index first, and last, each cut at 200 places; and what ends in air."""
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 50, "-an", "-vf", "scale=96:-2")
    last = clips.make("index last.mp4", *source, *X264).read_bytes()
    first = clips.make("index first.mp4", *source, *X264, "-movflags", "faststart").read_bytes()
    in_air = first + box(b"free", bytes(1000))
    # Behind the track there is nothing but its maker's name.
    (track,) = (end for begin, end in _boxes(last) if last[begin + 4 : begin + 8] == b"trak")
    places = {
        "index last": (last, _places(last), track),
        "index first": (first, _places(first), len(first)),
        "in air": (in_air, range(len(first), len(in_air), 100), len(first)),
    }
    return {
        f"{name} {at}.mp4": (data[:at], None if at >= needed else _code_of_cut(at))
        for name, (data, cut_at, needed) in places.items()
        for at in cut_at
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
    edges = [place for edges in _boxes(data) for place in edges]
    near = {place + step for place in edges for step in (-1, 0, 1)} & set(range(len(data)))
    places = set(sorted(near)[: CUTS // 2])
    places.update(int(at) for at in np.linspace(0, len(data) - 1, CUTS - len(places)))
    return sorted(places)


def _boxes(data: bytes, at: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    found = []
    while at < (len(data) if end is None else end):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((at, at + size))
        if data[at + 4 : at + 8] in PARENTS:
            found += _boxes(data, at + 8, at + size)
        at += size
    return found
