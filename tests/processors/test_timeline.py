from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.timeline import timeline_at_rate, timeline_of

RATES = st.sampled_from([Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)])
TICKS = st.sampled_from([Fraction(1, 1000), Fraction(1, 12800), Fraction(1, 90000)])


@given(fps=RATES, tick_s=TICKS, num_frames=st.integers(2, 5000), start=st.integers(-(10**9), 10**9))
def test_a_steady_rate_that_is_rounded_to_ticks_gives_every_frame_its_index(
    fps: Fraction, tick_s: Fraction, num_frames: int, start: int
) -> None:
    ticks = np.array([start + round(i / fps / tick_s) for i in range(num_frames)], np.int64)
    for stated_fps in (fps, None):
        timeline = timeline_of(
            ticks, tick_s=tick_s, last=round(1 / fps / tick_s), stated_fps=stated_fps
        )
        assert timeline.positions(range(num_frames)) == list(range(num_frames))
        assert timeline.fps == pytest.approx(float(fps), rel=0.05)
        assert timeline.duration_s == pytest.approx(num_frames / timeline.fps)
    assert timeline_of(ticks, tick_s=tick_s, last=0, stated_fps=fps).fps == float(fps)


@given(ticks=st.sets(st.integers(-(2**51), 2**51), min_size=2, max_size=50))
def test_wild_timestamps_give_ascending_positions(ticks: set[int]) -> None:
    ordered = np.array(sorted(ticks), np.int64)
    timeline = timeline_of(ordered, tick_s=Fraction(1, 1000), last=0, stated_fps=None)
    positions = timeline.positions(range(len(ordered)))
    assert positions[0] == 0
    assert positions == sorted(positions)
    assert 0 <= positions[-1] < len(ordered)


def test_a_varying_rate_goes_by_the_time_of_display() -> None:
    # At 0, 1, 2 and 8 seconds; the last one lasts for 2. Four frames in ten seconds.
    ticks = np.array([100, 101, 102, 108])
    timeline = timeline_of(ticks, tick_s=Fraction(1), last=2, stated_fps=Fraction(1))
    assert (timeline.fps, timeline.duration_s) == (0.4, 10)
    # At 0, 2.5, 5 and 7.5 seconds; the last one is half a tick before the last frame.
    assert timeline.positions(range(4)) == [0, 2, 2, 3]


def test_a_stated_rate_that_the_frames_do_not_keep_to_is_not_believed() -> None:
    ticks = np.arange(10) * 40
    timeline = timeline_of(ticks, tick_s=Fraction(1, 1000), last=0, stated_fps=Fraction(50))
    assert timeline.fps == pytest.approx(25)


def test_frames_without_times() -> None:
    timeline = timeline_at_rate(3, Fraction(2))
    assert (timeline.fps, timeline.duration_s, timeline.seconds.tolist()) == (2, 1.5, [0, 0.5, 1])
    assert timeline_at_rate(3, None).duration_s is None
    assert timeline_at_rate(3, None).positions([0, 2]) == [0, 2]


def test_one_frame() -> None:
    lone = np.array([7])
    assert timeline_of(lone, tick_s=Fraction(1, 2), last=1, stated_fps=None).duration_s == 0.5
    assert timeline_of(lone, tick_s=Fraction(1, 2), last=0, stated_fps=None).fps is None


@pytest.mark.parametrize("indices", [[-1], [3], [2, 1]])
def test_indices_that_name_no_frames_in_order(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"indices must ascend within 0..2, got \["):
        timeline_at_rate(3, Fraction(2)).positions(indices)
