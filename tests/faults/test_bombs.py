"""Pictures made to harm: each ends in bounded time and memory, and harms none after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.limits import Limits
from processors import DecodeError, MediaOptions, VideoSampling
from processors.media import MediaKind
from processors.sandbox import Decoder, DecoderLimits
from tests.faults.peaks import watched
from tests.support.bombs import Bombs

LIMITS = Limits()
QUICK_S = 15.0  # What takes seconds is far from the limit, on a busy machine too.
QUICK_BYTES = 2**29
TIMEOUT_S = 5.0
# Of a decoder that has seen no file: what it shares with the template it was forked from.
START_BYTES = 2**26


@dataclass(frozen=True)
class End:
    """What became of a file."""

    code: str | None
    seconds: float
    peak_bytes: int
    """Most memory of a process that was at it, what it shares with others included."""


@contextmanager
def decoder_of(
    timeout_s: float = LIMITS.decode_timeout_s, animated: MediaKind = "image"
) -> Iterator[Decoder]:
    """A job's own, but for the arguments."""
    limits = DecoderLimits(
        timeout_s=timeout_s,
        memory_bytes=LIMITS.decoder_memory_bytes,
        max_file_bytes=LIMITS.max_file_bytes,
    )
    options = MediaOptions(
        max_pixels=LIMITS.max_source_pixels,
        max_duration_s=LIMITS.max_duration_s,
        sampling=VideoSampling(),
        animated=animated,
    )
    with Decoder(limits=limits, options=options) as made:
        yield made


def frames(decoder: Decoder, data: bytes) -> list[np.ndarray]:
    with decoder.submit(data) as decoding:
        return [frame.copy() for frame in decoding.frames()]


def attack(decoder: Decoder, data: bytes, good: bytes, expected: np.ndarray) -> End:
    """Hands a file to a fresh process, with a good one behind it."""
    decoder.submit(good).close()  # What is not waited for costs its process.
    with watched() as seen:
        began = time.monotonic()
        hostile = decoder.submit(data)
        after = decoder.submit(good)
        code = None
        try:
            for frame in hostile.frames():
                del frame
        except DecodeError as error:
            code = error.code
        seconds = time.monotonic() - began
        (found,) = [frame.copy() for frame in after.frames()]
    np.testing.assert_array_equal(found, expected)
    return End(code, seconds, max(seen))


@pytest.fixture(scope="module")
def good(collection) -> tuple[bytes, np.ndarray]:
    """A photo, and what it is in a process that has seen nothing else."""
    data = collection.cut(".jpg")
    with decoder_of() as clean:
        (pixels,) = frames(clean, data)
    return data, pixels


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """Of pictures; one after the other has its processes."""
    with decoder_of() as made:
        yield made


def attack_with(cases: Bombs, good: tuple[bytes, np.ndarray], attacked: Decoder) -> dict[str, End]:
    ends = {name: attack(attacked, data, *good) for name, (data, _) in cases.items()}
    assert {name: end.code for name, end in ends.items()} == {
        name: code for name, (_, code) in cases.items()
    }
    return ends


def assert_cheap(ends: dict[str, End]) -> None:
    for name, end in ends.items():
        assert end.seconds < QUICK_S, name
        assert end.peak_bytes < QUICK_BYTES, name


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".tif", ".webp"])
def test_bombs_end_cheaply_with_their_own_codes(picture_bombs, good, decoder, suffix: str) -> None:
    cases = {name: case for name, case in picture_bombs.items() if name.endswith(suffix)}
    assert len(cases) >= 8
    assert_cheap(attack_with(cases, good, decoder))


def test_animations_end_cheaply_as_clips(animation_bombs_as_clips, good) -> None:
    with decoder_of(animated="video") as attacked:
        assert_cheap(attack_with(animation_bombs_as_clips, good, attacked))


@pytest.mark.whole
def test_animations_without_an_end_are_timed_out(endless_animations, good) -> None:
    with decoder_of(TIMEOUT_S, animated="video") as attacked:
        ends = attack_with(endless_animations, good, attacked)
    for name, end in ends.items():
        assert TIMEOUT_S <= end.seconds < TIMEOUT_S + QUICK_S, name
        assert end.peak_bytes < QUICK_BYTES, name


@pytest.mark.whole
def test_as_many_pixels_as_are_allowed_stay_within_the_memory(
    large_picture_bombs, good, decoder
) -> None:
    most = START_BYTES + LIMITS.decoder_memory_bytes + 3 * LIMITS.max_source_pixels
    ends = attack_with(large_picture_bombs, good, decoder)
    for name, end in ends.items():
        assert end.seconds < LIMITS.decode_timeout_s / 2, name
        assert end.peak_bytes < most + len(large_picture_bombs[name][0]), name
