from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import VideoMetadata, VideoSampling

FAMILIES = ("glmga", "glm46v", "glm4v")
# As much as any of their defaults allows.
MOST = {"glmga": 640, "glm46v": 640, "glm4v": 600}


def chosen(total: int, rate: float, duration: float | None = None, **options: Any) -> list[int]:
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=duration)
    return VideoSampling(**options).indices(metadata).tolist()


def golden_metadata(case: dict[str, Any]) -> VideoMetadata:
    return VideoMetadata(**{name: case[name] for name in ("total_num_frames", "fps", "duration")})


def test_indices_are_the_references(sampling_case: dict[str, Any]) -> None:
    family, expected = sampling_case["family"], sampling_case["indices"]
    fps = None if family == "glm46v" else sampling_case["requested_fps"]
    sampling = VideoSampling(family=family, fps=fps, **sampling_case["init"])
    indices = sampling.indices(golden_metadata(sampling_case))
    assert indices.dtype == np.int64
    if not expected or (family == "glmga" and len(set(expected)) == 1):
        # None of the frames, or but one of several: the deliberate difference.
        expected = [0, sampling_case["total_num_frames"] - 1]
    assert indices.tolist() == expected


def test_frames_by_hand() -> None:
    # 2 s at 4 frames a second. Two a second: those at 0, 0.5 and 1 s, and then no further, so that
    # four are spread over them.
    assert chosen(8, 4, 2) == [0, 1, 2, 4]
    # Four a second: the one at 1.75 s is too near the end, and the odd last one is there twice.
    assert chosen(8, 4, 2, fps=4) == [0, 1, 2, 3, 4, 5, 6, 6]
    # Six a second are more than there are.
    assert chosen(8, 4, 2, family="glm46v") == [0, 1, 2, 3, 4, 5, 6, 7]
    assert chosen(8, 4, 2, family="glm4v") == [0, 2, 4, 6]
    # Of a longer clip than allowed, as many as of the longest, from end to end.
    assert chosen(8, 4, 2, family="glm4v", max_duration=1) == [0, 7]
    assert chosen(8, 4, 2, family="glm4v", max_duration=1, fps=3) == [0, 4, 7, 7]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("duration", [None, 0])
def test_a_duration_that_is_not_known_is_counted_from_the_frames(
    family: Any, duration: float | None
) -> None:
    # 2.5 s from the first to the last frame, half to even, and one.
    expected = chosen(61, 24, 3, family=family)
    assert chosen(61, 24, duration, family=family) == expected
    assert chosen(61, 24, 2.5, family=family) != expected


def test_very_short_clips_give_the_first_and_the_last_frame() -> None:
    assert chosen(24, 24, 1) == [0, 23]  # the reference: [0, 0]
    assert chosen(10, 24, 0.4) == [0, 9]  # the reference: none
    assert chosen(27, 24, fps=0.01) == [0, 26]  # likewise
    assert chosen(3, 50, 0.06, family="glm46v") == [0, 2]  # the reference: none
    assert chosen(3, 5, 0.6, family="glm46v") == [0, 0]  # as the reference, which goes on with it
    assert chosen(48, 12.5, 3.84, family="glm4v", fps=0.5) == [0, 0]
    assert chosen(24, 24, 1, max_frames=1) == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_only_frame_is_repeated(family: Any) -> None:
    assert chosen(1, 30, family=family) == [0, 0]
    assert chosen(1, 30, 1 / 30, family=family) == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_max_frames_holds_for_every_family(family: Any) -> None:
    assert chosen(3000, 30, family=family, max_frames=4) == [0, 999, 1999, 2999]
    # An odd number is filled up with its last frame.
    assert chosen(3000, 30, family=family, max_frames=3) == [0, 1499, 2999, 2999]
    few = chosen(20, 10, 2, family=family)
    assert chosen(20, 10, 2, family=family, max_frames=len(few)) == few


@given(
    family=st.sampled_from(FAMILIES),
    total=st.integers(1, 2**53),
    fps=st.floats(0, 1e300, exclude_min=True) | st.sampled_from([24.0, 30000 / 1001]),
    duration=st.none() | st.floats(0, allow_infinity=False),
    max_frames=st.none() | st.integers(1, 640),
)
def test_indices_are_bounded_whatever_a_clip_says_of_itself(
    family: Any, total: int, fps: float, duration: float | None, max_frames: int | None
) -> None:
    if not math.isfinite(total / fps):
        with pytest.raises(ValueError, match="fps must be a positive number"):
            chosen(total, fps, duration, family=family)
        return
    indices = chosen(total, fps, duration, family=family, max_frames=max_frames)
    most = max_frames or MOST[family]
    distinct = sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < total
    assert 1 <= len(distinct) <= min(most, total)
    assert indices == distinct + distinct[-1:] * (len(distinct) % 2)


@given(
    total=st.integers(1, 3000),
    fps=st.floats(0.1, 240) | st.sampled_from([24.0, 25.0, 30000 / 1001]),
    wanted=st.floats(0.05, 60) | st.sampled_from([0.5, 2.0, 3.0]),
)
def test_frames_by_time_are_those_that_a_look_at_every_frame_finds(
    total: int, fps: float, wanted: float
) -> None:
    duration = total / fps
    number = int(min(duration * wanted, 640))
    due, found = 0.0, []
    for frame in range(total):
        if frame * (1 / fps) >= due:
            found.append(frame)
            due += 1 / wanted
            if due >= duration - 1 / wanted:
                break
    indices = chosen(total, fps, duration, fps=wanted)
    if 2 <= number == len(found) <= total:
        assert sorted(set(indices)) == found
    elif 2 <= number <= total and len(found) == 1 < total:
        assert indices == [0, total - 1]  # the deliberate difference
    elif 2 <= number <= total:
        assert indices[-1] == (found[-1] if len(found) < number else total - 1)


@given(
    total=st.integers(1, 1000),
    rate=st.floats(0.1, 240) | st.sampled_from([24.0, 25.0, 30000 / 1001]),
    duration=st.floats(0.01, 40),
    wanted=st.floats(0.05, 500) | st.sampled_from([24.0, 48.0, 50.0, 60.0]),
)
def test_glm4vs_frames_are_those_that_a_look_at_every_instant_finds(
    total: int, rate: float, duration: float, wanted: float
) -> None:
    instants = range(max(int(duration * wanted), 1))
    found = {min(total - 1, math.ceil(i * rate / wanted)) for i in instants}
    indices = chosen(total, rate, duration, family="glm4v", fps=wanted)
    assert sorted(set(indices)) == sorted(found)


@pytest.mark.parametrize("wanted", [1e9, 1e308])
@pytest.mark.parametrize("max_duration", [5, 300, 1e9])
def test_any_rate_costs_what_the_clips_frames_do(wanted: float, max_duration: float) -> None:
    """A timestamp for each of the instants would take 80 gigabytes."""
    options = {"fps": wanted, "max_duration": max_duration}
    assert chosen(300, 30, 10, family="glm4v", **options) == [*range(300)]
    assert VideoSampling(family="glm4v", **options).most_frames >= 300


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"fps": None}, "frame rate: fps must be a positive number, got None"),
        ({"fps": 0}, "got 0$"),
        ({"fps": -25.0}, "got -25.0"),
        ({"fps": math.nan}, "got nan"),
        ({"fps": math.inf}, "got inf"),
        ({"fps": 5e-324}, "got 5e-324"),
        ({"fps": "25"}, "got '25'"),
        ({"total_num_frames": 0}, "total_num_frames must be an integer of at least 1, got 0"),
        ({"total_num_frames": -3}, "got -3"),
        ({"total_num_frames": 7.0}, "got 7.0"),
        ({"total_num_frames": True}, "got True"),
        ({"total_num_frames": 2**60}, "got 1152921504606846976"),
        ({"duration": -1.0}, "duration must be a number of seconds, or None; got -1.0"),
        ({"duration": math.nan}, "got nan"),
        ({"duration": math.inf}, "got inf"),
    ],
    ids=str,
)
def test_metadata_of_no_clip_are_refused(
    family: Any, metadata: dict[str, Any], message: str
) -> None:
    clip = VideoMetadata(**{"total_num_frames": 20, "fps": 10.0} | metadata)
    with pytest.raises(ValueError, match=message):
        VideoSampling(family=family).indices(clip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "glm5"}, "family must be one of glmga, glm46v, glm4v; got 'glm5'"),
        ({"fps": 0}, "fps must be a positive number, got 0"),
        ({"fps": -1.0}, "got -1.0"),
        ({"fps": math.nan}, "got nan"),
        ({"fps": math.inf}, "got inf"),
        ({"fps": True}, "got True"),
        ({"max_frames": 0}, "max_frames must be an integer of at least 1, got 0"),
        ({"max_frames": 2.5}, "got 2.5"),
        ({"temporal_patch_size": 0}, "temporal_patch_size must be an integer of at least 1"),
        ({"family": "glm4v", "max_duration": 0}, "max_duration must be a positive number, got 0"),
        ({"family": "glm46v", "fps": 2.0}, "fps=2.0 has no effect on glm46v.*max_frames"),
        ({"max_duration": 60}, "max_duration=60 is an option of glm4v, not of glmga; use"),
        ({"family": "glm46v", "max_duration": 60}, "not of glm46v"),
    ],
    ids=str,
)
def test_options_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoSampling(**options)


def test_a_sampling_can_be_sent_to_a_process_without_torch() -> None:
    sampling = VideoSampling(family="glm4v", fps=1.5, max_duration=60)
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    script = (
        "import pickle, sys\n"
        f"sampling = pickle.loads({pickle.dumps(sampling)!r})\n"
        "from processors import VideoMetadata\n"
        "print(sampling.indices(VideoMetadata(total_num_frames=30, fps=10)).tolist())\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 7, 14, 20, 27, 29]"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "metadata are a VideoMetadata or a mapping, got NoneType"),
        (
            {"fps": 24},
            "metadata need total_num_frames, and may have duration, fps, frames_indices, height, "
            "video_backend, width; got fps",
        ),
        ({"total_num_frames": 3, "rate": 24}, "got total_num_frames, rate"),
    ],
    ids=str,
)
def test_what_is_no_metadata_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoMetadata.parse(value)


@given(
    total=st.integers(1, 10**6),
    rate=st.floats(0.1, 1000),
    options=st.fixed_dictionaries(
        {"family": st.sampled_from(["glmga", "glm4v"])},
        optional={"fps": st.floats(0.1, 50), "max_frames": st.integers(1, 100)},
    ),
)
def test_the_most_frames_are_known_before_any_clip_is(
    total: int, rate: float, options: dict[str, Any]
) -> None:
    assert len(chosen(total, rate, **options)) <= VideoSampling(**options).most_frames
    assert len(chosen(total, rate, family="glm46v")) <= VideoSampling(family="glm46v").most_frames
