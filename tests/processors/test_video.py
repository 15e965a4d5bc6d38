from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from processors import (
    AspectRatioError,
    FramePatcher,
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    GlmgaVideoProcessor,
    VideoFeatures,
    VideoMetadata,
    VideoOptions,
    create_glm4v_video_processor,
    patchify,
    smart_resize,
)

PROCESSORS = {
    "glmga": GlmgaVideoProcessor,
    "glm46v": Glm46VVideoProcessor,
    "glm4v": Glm4vVideoProcessor,
}
ALL = pytest.mark.parametrize("kind", list(PROCESSORS.values()))
SIZES = pytest.mark.parametrize(
    "sizes",
    [
        {"patch_size": patch, "temporal_patch_size": frames, "merge_size": merge}
        for patch in (14, 16)
        for frames in (1, 2, 4)
        for merge in (1, 2, 3)
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(**options: Any) -> GlmgaVideoProcessor:
    return GlmgaVideoProcessor(**{"do_sample_frames": False} | options)


def streamed(processor: Any, frames: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
    patcher = processor.patcher(len(frames), *frames[0].shape[:2])
    for frame in frames:
        patcher.add(frame)
    return patcher.finish()


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
def test_every_input_form_gives_the_same(kind: Any) -> None:
    frames = noise(4, 60, 90)
    processor = kind(return_tensors="np", do_sample_frames=False)
    expected = processor(frames)
    planar = torch.from_numpy(frames).permute(0, 3, 1, 2)
    forms: list[Any] = [
        planar,
        planar.numpy(),
        planar[None],
        [frames],
        (planar,),
        [[planar]],
        [frames[None]],
        list(frames),
        [list(planar)],
        [Image.fromarray(frame) for frame in frames],
        [[planar[0], Image.fromarray(frames[1]), frames[2], planar[3].to(torch.int64)]],
        tuple(frames),
        frames[::-1].copy()[::-1],
        np.asfortranarray(frames),
        frames.astype(">u2") * 257,
        planar.to(torch.uint16) * 257,
        np.lib.stride_tricks.as_strided(frames, frames.shape, frames.strides, writeable=False),
    ]
    for form in forms:
        features = processor(form)
        np.testing.assert_array_equal(features.pixel_values_videos, expected.pixel_values_videos)
        np.testing.assert_array_equal(features.video_grid_thw, expected.video_grid_thw)


def test_a_batch_is_its_clips_one_after_another_each_in_its_own_layout() -> None:
    first, second = noise(4, 60, 90), noise(3, 90, 60, seed=1)
    processor = whole(return_tensors="np")
    together = processor([first, torch.from_numpy(second).permute(0, 3, 1, 2)])
    alone = [processor(first), processor(second)]
    np.testing.assert_array_equal(
        together.pixel_values_videos, np.concatenate([one.pixel_values_videos for one in alone])
    )
    np.testing.assert_array_equal(
        together.video_grid_thw, np.concatenate([one.video_grid_thw for one in alone])
    )
    batch = processor(np.stack([first, first]))
    assert batch.video_grid_thw.tolist() == alone[0].video_grid_thw.tolist() * 2


def test_transparent_and_grey_frames_are_taken() -> None:
    frames = noise(2, 56, 84)
    alpha = np.full((2, 56, 84, 1), 51, np.uint8)
    on_white = np.rint(frames * 0.2 + 255 * 0.8).astype(np.uint8)
    processor = whole()
    np.testing.assert_array_equal(
        processor(np.concatenate([frames, alpha], axis=3), **LEVELS).pixel_values_videos,
        processor(on_white, **LEVELS).pixel_values_videos,
    )
    grey = frames[..., :1]
    np.testing.assert_array_equal(
        processor(list(grey[..., 0]), **LEVELS).pixel_values_videos,
        processor(np.repeat(grey, 3, axis=3), **LEVELS).pixel_values_videos,
    )


def test_frames_of_another_size_are_brought_to_the_first_ones() -> None:
    small = noise(1, 56, 84)[0]
    large = noise(1, 99, 77, seed=1)[0]
    processor = whole()
    patches, grid = streamed(processor, [small, large])
    assert grid[1:] == processor.patcher(2, 56, 84).grid_thw[1:]
    features = processor([small, large], **LEVELS)
    np.testing.assert_array_equal(features.pixel_values_videos, patches)
    fixed = whole(do_resize=False).patcher(2, 56, 84)
    fixed.add(small)
    with pytest.raises(ValueError, match="do_resize=False takes frames of one size, 56 x 84, got"):
        fixed.add(large)


def test_the_result_is_a_mapping() -> None:
    frames, metadata = noise(8, 56, 56), VideoMetadata(total_num_frames=8, fps=4.0)
    features = GlmgaVideoProcessor()(frames, video_metadata=metadata)
    assert isinstance(features, VideoFeatures)
    assert list(features) == ["pixel_values_videos", "video_grid_thw"]
    assert len(features) == 2
    assert str(features.keys()) == "dict_keys(['pixel_values_videos', 'video_grid_thw'])"
    assert dict(**features)["pixel_values_videos"] is features.pixel_values_videos
    with pytest.raises(KeyError):
        features["video_metadata"]
    described = GlmgaVideoProcessor(return_metadata=True)(frames, video_metadata=[metadata])
    assert list(described) == ["pixel_values_videos", "video_grid_thw", "video_metadata"]


def test_metadata_of_the_caller_stay_as_they_were() -> None:
    given = {"total_num_frames": 8, "fps": 4.0}
    features = GlmgaVideoProcessor(return_metadata=True)(noise(8, 56, 56), video_metadata=given)
    assert given == {"total_num_frames": 8, "fps": 4.0}
    assert features.video_metadata == [VideoMetadata(**given, frames_indices=(0, 1, 2, 3, 4, 6))]
    kept = whole(return_metadata=True)(noise(3, 56, 56))
    assert kept.video_metadata == [VideoMetadata(total_num_frames=3)]


@ALL
def test_metadata_are_taken_in_every_form(kind: Any) -> None:
    from transformers.video_utils import VideoMetadata as Theirs

    frames, given = noise(8, 56, 56), {"total_num_frames": 8, "fps": 4.0}
    processor = kind(return_tensors="np", return_metadata=True)
    expected = processor(frames, video_metadata=given)
    forms: list[Any] = [
        VideoMetadata(**given),
        VideoMetadata(8, 4),
        Theirs(**given),
        [given],
        (given,),
        {"total_num_frames": np.int64(8), "fps": np.float32(4)},
    ]
    for form in forms:
        features = processor([frames], video_metadata=form)
        np.testing.assert_array_equal(features.pixel_values_videos, expected.pixel_values_videos)
        assert (
            features.video_metadata[0].frames_indices == expected.video_metadata[0].frames_indices
        )
    kept = processor([frames, frames], video_metadata=[None, given], do_sample_frames=False)
    assert kept.video_metadata == [VideoMetadata(8), VideoMetadata(8, 4)]


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


def test_random_frames_as_levels_warn_once_and_go_on() -> None:
    # What the document that the project grew from does.
    video = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    metadata = VideoMetadata(fps=30.0, total_num_frames=16)
    processor = Glm4vVideoProcessor()
    low, high = video[[0, 15]].min(), video[[0, 15]].max()
    for call in (processor, processor.preprocess):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            inputs = call([video], video_metadata=[metadata], return_tensors="pt")
        assert [(str(item.message).split(";")[0], item.filename) for item in caught] == [
            (
                "floating-point images count as levels 0..255 and are rescaled, "
                f"but these hold {low:.4g}..{high:.4g}",
                __file__,
            )
        ]
        assert inputs["video_grid_thw"].tolist() == [[1, 16, 16]]
        assert inputs["pixel_values_videos"].shape == (256, 1176)
    processor(video, video_metadata=metadata, do_rescale=False)  # no warning


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], r"a list of frames, got \[\]; decode files with"),
        ("clip.mp4", "got 'clip.mp4'"),
        (np.zeros((0, 28, 28, 3), np.uint8), r"got shape \(0, 28, 28, 3\)"),
        (np.zeros((0, 2, 28, 28, 3), np.uint8), r"got shape \(0, 2, 28, 28, 3\)"),
        (np.zeros((28, 28, 3), np.uint8), r"got shape \(28, 28, 3\); pass a frame alone as a list"),
        (
            [np.zeros((28, 28, 3)), np.zeros((2, 28, 28, 3))],
            "of one clip, or clips, not both, got 1 frames among 2 items",
        ),
        (np.zeros((2, 0, 28, 3), np.uint8), "at least one pixel a side"),
        (np.zeros((2, 3, 28, 3), np.uint8), "could be read in two ways"),
        (
            [np.zeros((28, 28, 3), np.uint8), np.zeros((28, 28, 3))],
            "of one type, got uint8 and then float32 for frame 1; convert them",
        ),
        (np.full((2, 28, 28, 3), np.nan), "levels must be finite .*, got nan at row 0, column 0"),
        (np.array([None, None]), r"a clip has 4 dimensions.*got shape \(2,\)"),
        (iter(np.zeros((2, 28, 28, 3), np.uint8)), "or a list of frames, got <iterator object"),
        (np.zeros((1, 1, 2, 28, 28, 3)), r"got shape \(1, 1, 2, 28, 28, 3\)"),
        (Image.new("RGB", (28, 28)), "or a list of frames, got <PIL.Image.Image"),
        ([None], "or a list of frames, got None"),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else "",
)
def test_what_is_no_clip_is_refused(videos: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole()(videos)


@ALL
@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "sampling needs a clip's frame rate: pass video_metadata, or do_sample_frames"),
        ({"total_num_frames": 8}, "fps must be a positive number, got None"),
        ({"total_num_frames": 8, "fps": 0}, "fps must be a positive number, got 0"),
        ({"total_num_frames": 8, "fps": -24}, "got -24"),
        ({"total_num_frames": 8, "fps": float("nan")}, "got nan"),
        ({"total_num_frames": 8, "fps": float("inf")}, "got inf"),
        ({"total_num_frames": 8, "fps": "24"}, "got '24'"),
        ({"total_num_frames": 8, "fps": 4, "duration": -1}, "duration must be .*; got -1"),
        ({"total_num_frames": 8.0, "fps": 4}, r"total_num_frames must be an integer.*, got 8\.0"),
        ([None], "sampling needs a clip's frame rate: pass video_metadata"),
        ([[{"total_num_frames": 8, "fps": 4}]], "a VideoMetadata or a mapping, got list"),
        ({"total_num_frames": 9, "fps": 4}, "has total_num_frames=9, but the clip has 8 frames"),
        ({"total_num_frames": 7, "fps": 4}, "total_num_frames=7"),
        ([{"total_num_frames": 8, "fps": 4}] * 2, "got 1 clips and 2 video_metadata; pass one"),
        ([], "got 1 clips and 0 video_metadata"),
        ({"fps": 4}, "metadata need total_num_frames"),
    ],
    ids=str,
)
def test_metadata_that_do_not_fit_are_refused(kind: Any, metadata: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind()(noise(8, 28, 28), video_metadata=metadata)


REFUSED = [
    ({"num_frames": 16}, "num_frames=16 is not supported: .* use fps or max_frames"),
    ({"crop_size": 224}, "crop the images before"),
    ({"max_image_size": {"longest_edge": 9}}, "use size or max_pixels"),
    ({"framerate": 4}, "unknown option framerate=4; the options are size, .*, fps, max_frames"),
    ({"do_sample_frames": 1}, "do_sample_frames must be True or False, got 1"),
    ({"return_metadata": "yes"}, "got 'yes'"),
    ({"fps": 0}, "fps.*0"),
    ({"max_frames": 0}, "max_frames must be an integer of at least 1, got 0"),
    ({"resample": 1}, "resample=LANCZOS is not among torch's NEAREST"),
]


@ALL
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_refused_at_construction_and_at_call(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
    with pytest.raises(ValueError, match=message):
        kind()(noise(2, 28, 28), **{"do_sample_frames": False} | options)
    with pytest.raises(ValueError, match=message):
        kind().get_num_of_video_patches(2, 28, 28, options)


def test_options_of_another_family_are_refused() -> None:
    for kind in (GlmgaVideoProcessor, Glm46VVideoProcessor):
        with pytest.raises(ValueError, match="max_duration=60 is an option of glm4v"):
            kind(max_duration=60)
    with pytest.raises(ValueError, match="fps=4 has no effect on glm46v"):
        Glm46VVideoProcessor(fps=4)


@ALL
def test_no_ops_are_accepted(kind: Any) -> None:
    size = {"longest_edge": kind().options.max_pixels}
    options = {"max_image_size": size, "do_pad": False, "num_frames": None, "max_duration": None}
    assert kind(**options).options == kind().options


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
