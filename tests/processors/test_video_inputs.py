from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processors import (
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    GlmgaVideoProcessor,
    VideoFeatures,
    VideoMetadata,
)
from tests.support.video_processors import ALL, LEVELS, noise, streamed, whole


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
