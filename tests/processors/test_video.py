from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from processors import (
    AspectRatioError,
    FramePatcher,
    Glm4vVideoProcessor,
    GlmgaVideoProcessor,
    VideoMetadata,
    VideoOptions,
    create_glm4v_video_processor,
    patchify,
    smart_resize,
)
from tests.support.sizes import SIZES
from tests.support.video_processors import ALL, LEVELS, PROCESSORS, noise, streamed, whole


def test_levels_are_the_references(
    video_case: dict[str, Any], golden_levels: dict[str, np.ndarray]
) -> None:
    name, family = video_case["name"].split(".")
    frames = golden_levels[f"{name}.frames"]
    processor = PROCESSORS[family](do_sample_frames=False)
    features = processor(frames, **LEVELS)
    patches, grid = streamed(processor, frames)
    np.testing.assert_array_equal(features.pixel_values_videos, patches)
    assert features.video_grid_thw.tolist() == [list(grid)]
    if "upstream_error" in video_case:
        # One frame, which the reference refuses, is two that are equal.
        assert len(frames) == 1
        expected = processor(np.repeat(frames, 2, axis=0), **LEVELS)
        assert list(grid) == expected.video_grid_thw[0].tolist() == [1, 6, 6]
        np.testing.assert_array_equal(patches, expected.pixel_values_videos)
    else:
        assert list(grid) == video_case["grid_thw"]
        np.testing.assert_array_equal(patches, golden_levels[video_case["name"]])


def test_sample_frames_agrees_with_preprocess_and_the_reference(
    sampling_case: dict[str, Any],
) -> None:
    family, total = sampling_case["family"], sampling_case["total_num_frames"]
    processor = PROCESSORS[family](**sampling_case["init"], max_pixels=12544, min_pixels=1)
    metadata = {name: sampling_case[name] for name in ("total_num_frames", "fps", "duration")}
    indices = processor.sample_frames(metadata, fps=sampling_case["requested_fps"])
    expected = sampling_case["indices"]
    if expected and not (family == "glmga" and len(set(expected)) == 1):
        assert indices.tolist() == expected
    if total > 60:
        return  # Enough is shown by the short ones, at a fraction of the time.
    overrides = {} if family == "glm46v" else {"fps": sampling_case["requested_fps"]}
    clip = noise(total, 28, 28)
    features = processor(clip, video_metadata=metadata, return_metadata=True, **LEVELS | overrides)
    assert features.video_metadata == [
        VideoMetadata(**metadata, frames_indices=tuple(indices.tolist()))
    ]
    kept = processor(clip[indices], do_sample_frames=False, **LEVELS)
    np.testing.assert_array_equal(features.pixel_values_videos, kept.pixel_values_videos)
    assert len(features.pixel_values_videos) == processor.get_num_of_video_patches(
        len(indices), 28, 28
    )


def test_pixel_values_against_float64() -> None:
    processor = whole()
    frames = noise(4, 70, 100)
    patches, grid = streamed(processor, frames)
    levels = patches.astype(np.float64).reshape(len(patches), 3, -1)
    mean = np.array(processor.options.image_mean).reshape(3, 1)
    std = np.array(processor.options.image_std).reshape(3, 1)
    expected = ((levels / 255 - mean) / std).reshape(len(patches), -1)
    features = processor(frames)
    assert features.pixel_values_videos.dtype == torch.float32
    assert features.video_grid_thw.dtype == torch.int64
    assert features.video_grid_thw.tolist() == [list(grid)]
    np.testing.assert_allclose(features.pixel_values_videos.numpy(), expected, atol=1e-6)


def test_patches_by_hand() -> None:
    # Three frames of one merge block, each of one level: the last one is repeated.
    frames = np.full((3, 28, 28, 3), [[[[1]]], [[[2]]], [[[3]]]], np.uint8)
    processor = whole(do_resize=False)
    patches, grid = streamed(processor, frames)
    assert grid == (2, 2, 2)
    levels = patches.reshape(2, 4, 3, 2, 196)
    assert (levels == np.array([[1, 2], [3, 3]]).reshape(2, 1, 1, 2, 1)).all()


@given(
    num_frames=st.integers(1, 7),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    temporal_patch_size=st.integers(1, 4),
    merge_size=st.integers(1, 3),
    patch_size=st.sampled_from([14, 16]),
    patch_expand_factor=st.integers(1, 2),
    max_pixels=st.integers(12544, 100_000),
)
def test_a_stream_gives_what_the_whole_clip_does(
    num_frames: int, height: int, width: int, **options: int
) -> None:
    frames = noise(num_frames, height, width)
    processor = whole(**options, input_data_format="channels_last")
    patches, grid = streamed(processor, frames)
    assert processor.get_num_of_video_patches(num_frames, height, width) == len(patches)
    assert GlmgaVideoProcessor().get_num_of_video_patches(
        num_frames, height, width, options
    ) == len(patches)
    features = processor(frames, **LEVELS)
    np.testing.assert_array_equal(features.pixel_values_videos, patches)
    assert features.video_grid_thw.tolist() == [list(grid)]
    # The way the reference goes: resize all, repeat the last, cut all.
    temporal = options["temporal_patch_size"]
    size = smart_resize(
        max(num_frames, temporal),
        height,
        width,
        temporal_factor=temporal,
        factor=processor.options.factor,
        max_pixels=options["max_pixels"],
    )
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if size != (height, width):
        planes = F.interpolate(planes, size, mode="bicubic", antialias=True)
    padded = torch.cat([planes, planes[-1:].expand(-num_frames % temporal, -1, -1, -1)])
    expected, expected_grid = patchify(
        padded.permute(0, 2, 3, 1).numpy(),
        patch_size=options["patch_size"],
        temporal_patch_size=temporal,
        merge_size=options["merge_size"],
    )
    assert grid == expected_grid
    np.testing.assert_array_equal(patches, expected)


def test_floating_point_frames_are_resized_as_floating_point() -> None:
    frames = np.random.default_rng(0).normal(100, 40, (3, 90, 130, 3)).astype(np.float32)
    features = whole()(frames, do_rescale=False, do_normalize=False)
    _, h, w = features.video_grid_thw[0].tolist()
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    resized = F.interpolate(planes, (h * 14, w * 14), mode="bicubic", antialias=True)
    expected, _ = patchify(torch.cat([resized, resized[-1:]]).permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(features.pixel_values_videos.numpy(), expected)


def test_budgets_are_each_familys_own() -> None:
    budgets = {family: kind().options.max_pixels for family, kind in PROCESSORS.items()}
    assert budgets == {"glmga": 87_478_720, "glm46v": 47_040_000, "glm4v": 47_040_000}
    assert {kind().options.min_pixels for kind in PROCESSORS.values()} == {12544}
    # 200 frames share them: of 17 x 31 blocks of 784 pixels in the first, of 12 x 23 in the others.
    grids = {
        family: kind().patcher(200, 1080, 1920).grid_thw for family, kind in PROCESSORS.items()
    }
    assert grids == {"glmga": (100, 34, 62), "glm46v": (100, 24, 46), "glm4v": (100, 24, 46)}


def test_odd_clips_budget_as_the_reference_rounds() -> None:
    # 5 frames budget as 4 and become 6: 4 * 56 * 56 fits.
    processor = whole(max_pixels=4 * 56 * 56, min_pixels=1)
    assert processor.patcher(5, 56, 56).grid_thw == (3, 4, 4)
    assert processor.patcher(7, 56, 56).grid_thw == (4, 2, 2)


@ALL
@SIZES
@pytest.mark.parametrize("num_frames", [1, 5])
def test_sizes_of_patches(kind: Any, num_frames: int, sizes: dict[str, int]) -> None:
    """By the definition: every patch in its place, the last frame as often as it takes."""
    P, m, T = sizes["patch_size"], sizes["merge_size"], sizes["temporal_patch_size"]
    rows, columns, segments = 2 * m, m, -(-num_frames // T)
    frames = noise(num_frames, rows * P, columns * P)
    processor = kind(**sizes, do_resize=False, do_sample_frames=False)
    features = processor(frames, **LEVELS)
    padded = frames[np.minimum(np.arange(segments * T), num_frames - 1)]
    expected = [
        padded[t * T : t * T + T, y * P : y * P + P, x * P : x * P + P].transpose(3, 0, 1, 2)
        for t in range(segments)
        for top in range(0, rows, m)
        for left in range(0, columns, m)
        for y in range(top, top + m)
        for x in range(left, left + m)
    ]
    np.testing.assert_array_equal(
        features.pixel_values_videos, np.stack(expected).reshape(len(expected), -1)
    )
    assert features.video_grid_thw.tolist() == [[segments, rows, columns]]
    count = processor.get_num_of_video_patches(num_frames, rows * P, columns * P)
    assert count == segments * rows * columns


@pytest.mark.parametrize(
    ("num_frames", "kept"),
    [
        (2, [0, 0, 0, 0]),
        (6, [0, 2, 4, 4]),
        (10, [0, 2, 4, 6, 8, 8, 8, 8]),
    ],
)
def test_short_clips_of_four_frames_a_patch_repeat_the_last_one(
    num_frames: int, kept: list[int]
) -> None:
    processor = create_glm4v_video_processor(fps=1.0, max_duration=60, temporal_patch_size=4)
    frames = noise(num_frames, 28, 56)
    metadata = VideoMetadata(fps=2.0, total_num_frames=num_frames)
    features = processor(frames, video_metadata=metadata, do_resize=False, **LEVELS)
    expected = processor(frames[kept], do_sample_frames=False, do_resize=False, **LEVELS)
    assert features.video_grid_thw.tolist() == [[len(kept) // 4, 2, 4]]
    np.testing.assert_array_equal(features.pixel_values_videos, expected.pixel_values_videos)
    chosen = processor.sample_frames(metadata)
    assert sorted({*chosen.tolist()}) == sorted({*kept})
    assert processor.get_num_of_video_patches(len(chosen), 28, 56, {"do_resize": False}) == len(
        features.pixel_values_videos
    )


def test_options_at_call_time_hold_for_the_sampling() -> None:
    frames, metadata = noise(64, 28, 28), VideoMetadata(total_num_frames=64, fps=8.0)
    processor = GlmgaVideoProcessor(return_metadata=True)
    features = processor(frames, video_metadata=metadata, max_frames=4)
    assert features.video_metadata[0].frames_indices == (0, 21, 42, 63)
    assert processor.sample_frames(metadata, max_frames=4).tolist() == [0, 21, 42, 63]
    assert processor.options == VideoOptions(return_metadata=True)
    long = Glm4vVideoProcessor(return_metadata=True)
    features = long(frames, video_metadata=metadata, max_duration=2)
    assert features.video_metadata[0].frames_indices == (0, 24, 48, 63)
    assert GlmgaVideoProcessor(max_frames=4).sampling.indices(metadata).tolist() == [0, 21, 42, 63]


def test_a_patcher_wants_all_its_frames_and_no_others() -> None:
    frames = noise(3, 56, 84)
    patcher = GlmgaVideoProcessor().patcher(3, 56, 84)
    assert isinstance(patcher, FramePatcher)
    patcher.add(frames[0])
    for bad in (frames[0, ..., :1], frames[0].astype(np.float32), frames, frames[0, :0]):
        with pytest.raises(ValueError, match=r"expected a frame of uint8 \[H, W, 3\], got"):
            patcher.add(bad)
    patcher.add(frames[1])
    with pytest.raises(ValueError, match="expected 3 frames, got 2"):
        patcher.finish()
    patcher.add(frames[2])
    with pytest.raises(ValueError, match="expected 3 frames, got one more"):
        patcher.add(frames[2])
    assert patcher.finish()[1] == patcher.grid_thw


def test_a_patcher_lets_its_frames_be_reused_and_read_only() -> None:
    frames = noise(4, 56, 84)
    processor = GlmgaVideoProcessor(do_resize=False)
    expected, _ = streamed(processor, frames)
    patcher = processor.patcher(4, 56, 84)
    shared = np.empty_like(frames[0])
    view = shared.view()
    view.flags.writeable = False
    for frame in frames:
        shared[:] = frame
        patcher.add(view)
    shared[:] = 0
    np.testing.assert_array_equal(patcher.finish()[0], expected)


def test_clips_without_frames_or_with_extreme_sides_are_refused() -> None:
    processor = GlmgaVideoProcessor()
    for count in (processor.patcher, processor.get_num_of_video_patches):
        for frames in (0, 2.5):
            message = f"num_frames must be an integer of at least 1, got {frames}"
            with pytest.raises(ValueError, match=message):
                count(frames, 56, 56)
        with pytest.raises(ValueError, match="got 0 x 56"):
            count(2, 0, 56)
        with pytest.raises(AspectRatioError):
            count(2, 28, 28 * 201)
    with pytest.raises(ValueError, match="= 28, got 56 x 80; resize them"):
        whole(do_resize=False)(noise(2, 56, 80))
