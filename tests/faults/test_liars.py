"""Clips that lie through the real decoder process: each costs its own error, and no more."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.limits import Limits
from processors import DecodeError
from processors.media import MediaInfo, MediaOptions
from processors.sampling import VideoSampling
from processors.sandbox import Decoder, DecoderLimits
from tests.faults.peaks import watched
from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.isobmff import Liars

MIB = 2**20
LIMITS = Limits()
HURRIED_S = 3.0
"""For those that would take as long as they may."""
SOON_S = 10.0
LITTLE_BYTES = 320 * MIB
# What a decoder process has before it sees a file: its imports.
IMPORTS = 100 * MIB
# Two frames of the largest size, which it shares with its parent.
SHARED = 2 * 3 * LIMITS.max_source_pixels


@dataclass(frozen=True)
class End:
    """What became of a file, and what it cost."""

    code: str | None
    seconds: float
    peak_bytes: int


class GoodClip:
    """What a clip is in a process that saw no other file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        with decoder() as clean:
            self._alone = self._decoded(clean)

    def assert_unharmed(self, after: Decoder) -> None:
        np.testing.assert_equal(self._decoded(after), self._alone)

    def _decoded(self, decoder: Decoder) -> tuple[MediaInfo, list[np.ndarray]]:
        with decoder.submit(self._data) as decoding:
            return decoding.info(), [frame.copy() for frame in decoding.frames()]


@pytest.fixture(scope="module")
def good(clips: ClipMaker) -> GoodClip:
    return GoodClip(clips.make("h264.mp4", *PATTERN, *X264).read_bytes())


def decoder(timeout_s: float = LIMITS.decode_timeout_s) -> Decoder:
    """As a run has it by default, but for the time."""
    return Decoder(
        limits=DecoderLimits(
            timeout_s=timeout_s,
            memory_bytes=LIMITS.decoder_memory_bytes,
            max_file_bytes=LIMITS.max_file_bytes,
        ),
        options=MediaOptions(
            max_pixels=LIMITS.max_source_pixels,
            max_duration_s=LIMITS.max_duration_s,
            sampling=VideoSampling(family="glmga"),
        ),
    )


def ended(decoder: Decoder, data: bytes) -> End:
    """Decodes a file in a process of its own."""
    decoder.submit(b"").close()  # ends the process that there is
    code = None
    with watched() as peaks:
        began = time.monotonic()
        try:
            with decoder.submit(data) as decoding:
                for _ in decoding.frames():
                    pass
        except DecodeError as error:
            code = error.code
        seconds = time.monotonic() - began
    return End(code, seconds, max(peaks))


def ends_of(liars: Liars, good: GoodClip) -> dict[str, End]:
    """What becomes of each; the good clip is decoded after it, in the same process if it lives."""
    ends = {}
    with decoder() as patient, decoder(HURRIED_S) as hurried:
        for name, (data, code) in liars.items():
            given = hurried if code == "decode_timeout" else patient
            ends[name] = ended(given, data)
            good.assert_unharmed(after=given)
    return ends


def assert_codes(ends: dict[str, End], liars: Liars) -> None:
    found = {name: end.code for name, end in ends.items()}
    assert found == {name: code for name, (_, code) in liars.items()}


def test_each_liar_has_its_code_soon_and_with_little_memory(liars: Liars, good: GoodClip) -> None:
    ends = ends_of(liars, good)
    assert_codes(ends, liars)
    costly = {
        name: end
        for name, end in ends.items()
        if end.seconds > SOON_S or end.peak_bytes > LITTLE_BYTES
    }
    assert not costly


@pytest.mark.whole
def test_each_bomb_has_its_code_within_the_limits_of_a_run(
    clip_bombs: Liars, good: GoodClip
) -> None:
    ends = ends_of(clip_bombs, good)
    assert_codes(ends, clip_bombs)
    for name, (data, code) in clip_bombs.items():
        end = ends[name]
        most_s = HURRIED_S + 2 if code == "decode_timeout" else LIMITS.decode_timeout_s / 3
        most_bytes = IMPORTS + LIMITS.decoder_memory_bytes + SHARED + 2 * len(data)
        assert end.seconds < most_s, (name, end)
        assert end.peak_bytes < most_bytes, (name, end)


@pytest.mark.whole
def test_a_clip_cut_anywhere_is_truncated_unless_nothing_is_missing(
    cuts: Liars, good: GoodClip
) -> None:
    assert len(cuts) >= 400
    ends = ends_of(cuts, good)
    assert_codes(ends, cuts)
    assert max(end.seconds for end in ends.values()) < SOON_S
    assert max(end.peak_bytes for end in ends.values()) < LITTLE_BYTES
