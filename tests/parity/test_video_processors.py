"""The video classes among themselves: what they count, what they choose and what they make.

transformers' own want torchvision: their results are stored, and compared with in
`tests/processors/test_video.py` and `tests/processors/test_sampling.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import (
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    GlmgaVideoProcessor,
    VideoMetadata,
)
from tests.parity.generated import generated

KINDS = [GlmgaVideoProcessor, Glm46VVideoProcessor, Glm4vVideoProcessor]
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}

patchings = st.fixed_dictionaries(
    {},
    optional={
        "patch_size": st.sampled_from([14, 16]),
        "temporal_patch_size": st.sampled_from([1, 2, 4]),
        "merge_size": st.sampled_from([1, 2, 3]),
        "patch_expand_factor": st.integers(1, 2),
        "size": st.builds(
            lambda low, more: {"shortest_edge": low, "longest_edge": low + more},
            st.integers(1, 40_000),
            st.integers(0, 200_000),
        ),
    },
)


@st.composite
def samplings(draw: st.DrawFn, kind: type[Any]) -> dict[str, Any]:
    """Options of sampling that a class has a use for."""
    options: dict[str, st.SearchStrategy[Any]] = {"max_frames": st.integers(1, 40)}
    if kind is not Glm46VVideoProcessor:
        options["fps"] = st.floats(0.1, 40)
    if kind is Glm4vVideoProcessor:
        options["max_duration"] = st.floats(0.1, 20)
    return draw(st.fixed_dictionaries({}, optional=options))


@generated(80)
@given(
    data=st.data(),
    kind=st.sampled_from(KINDS),
    frames=st.integers(1, 30),
    fps=st.floats(0.2, 120),
    duration=st.none() | st.floats(0, 60),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    patching=patchings,
)
def test_counts_and_sampling_agree_with_what_is_made(
    data: st.DataObject,
    kind: Any,
    frames: int,
    fps: float,
    duration: float | None,
    height: int,
    width: int,
    patching: dict[str, Any],
) -> None:
    options = patching | data.draw(samplings(kind))
    metadata = VideoMetadata(total_num_frames=frames, fps=fps, duration=duration)
    shape = (frames, height, width, 3)
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain = {"input_data_format": "channels_last", **LEVELS}
    built = kind(**options)
    features = built(clip, video_metadata=metadata, return_metadata=True, **plain)

    indices = built.sample_frames(metadata)
    assert kind().sample_frames(metadata, **options).tolist() == indices.tolist()
    assert features.video_metadata[0].frames_indices == tuple(indices.tolist())
    made = len(features.pixel_values_videos)
    assert int(features.video_grid_thw.prod()) == made
    assert built.get_num_of_video_patches(len(indices), height, width) == made
    assert kind().get_num_of_video_patches(len(indices), height, width, options) == made
    called = kind()(clip, video_metadata=metadata, **plain, **options)
    chosen = built(clip[indices], do_sample_frames=False, **plain)
    for again in (called, chosen):
        np.testing.assert_array_equal(again.pixel_values_videos, features.pixel_values_videos)
        np.testing.assert_array_equal(again.video_grid_thw, features.video_grid_thw)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temporal_patch_size", [1, 2, 4])
def test_a_clip_of_one_frame_is_that_frame_repeated(kind: Any, temporal_patch_size: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 60, 90, 3), dtype=np.uint8)
    processor = kind(temporal_patch_size=temporal_patch_size, do_sample_frames=False)
    features = processor(frame, **LEVELS)
    repeated = processor(np.repeat(frame, temporal_patch_size, axis=0), **LEVELS)
    np.testing.assert_array_equal(features.pixel_values_videos, repeated.pixel_values_videos)
    t, h, w = features.video_grid_thw[0].tolist()
    assert t == 1
    assert processor.get_num_of_video_patches(1, 60, 90) == h * w
