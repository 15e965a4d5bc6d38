from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processors import (
    Glm4vImageProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VVideoProcessor,
    GlmgaImageProcessor,
    GlmgaImageProcessorPil,
    GlmgaVideoProcessor,
    ImageOptions,
)

IMAGE = np.zeros((56, 56, 3), np.uint8)
IMAGES = [GlmgaImageProcessor, Glm46VImageProcessor, Glm4vImageProcessor, GlmgaImageProcessorPil]
VIDEOS = [GlmgaVideoProcessor, Glm46VVideoProcessor, Glm4vVideoProcessor]

REFUSED = [
    ({"size_divisor": 32}, r"size_divisor=32 is not supported: sides are multiples"),
    ({"do_center_crop": True}, "crop the images before"),
    ({"crop_size": {"height": 224, "width": 224}}, "crop the images before"),
    ({"do_pad": True}, "packed without padding"),
    ({"pad_size": {"height": 9, "width": 9}}, "packed without padding"),
    ({"data_format": "channels_last"}, "patches are flat"),
    ({"default_to_square": True}, "budgets of pixels"),
    ({"pad_size": 9}, "packed without padding"),
    ({"max_image_size": 980}, "use size or max_pixels"),
    ({"disable_grouping": True}, "each image is resized by itself"),
    ({"patchsize": 14}, r"unknown option patchsize=14; the options are size, do_resize"),
    ({"num_frames": None}, "unknown option num_frames=None"),
    ({"size": {"height": 224, "width": 224}}, "size needs 'shortest_edge' and 'longest_edge'"),
    ({"size": {"shortest_edge": 3136}}, r"got \{'shortest_edge': 3136\}"),
    ({"size": 224}, "got 224"),
    ({"size": "large"}, "got 'large'"),
    ({"size": {"min_pixels": 9, "max_pixels": 99}}, r"got \{'min_pixels': 9, 'max_pixels': 99\}"),
    (
        {"size": {"shortest_edge": None, "longest_edge": 9}},
        r"got \{'shortest_edge': None, 'longest_edge': 9\}",
    ),
    ({"size": {"shortest_edge": 8, "longest_edge": 9, "height": 7}}, "'height': 7"),
    ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "got 9 and 8"),
    (
        {"size": {"shortest_edge": 8, "longest_edge": 9}, "max_pixels": 10},
        "size and max_pixels disagree, 9 and 10",
    ),
    ({"max_pixels": 5}, "got 12544 and 5"),
    ({"min_pixels": 0}, "min_pixels must be an integer of at least 1, got 0"),
    ({"patch_size": 14.0}, "got 14.0"),
    ({"merge_size": True}, "got True"),
    ({"do_resize": "yes"}, "do_resize must be True or False, got 'yes'"),
    ({"rescale_factor": 0}, "rescale_factor must be a positive number, got 0"),
    ({"rescale_factor": "1/255"}, "got '1/255'"),
    ({"image_mean": [0.5, 0.5]}, r"one number or three, finite; got \[0.5, 0.5\]"),
    ({"image_std": [0.5, 0, 0.5]}, "finite and not 0"),
    ({"image_mean": "0.5"}, "got '0.5'"),
    ({"image_mean": float("nan")}, "image_mean must be one number or three, finite; got nan"),
    ({"resample": 9}, r"resample must be one of 0 \(NEAREST\).*; got 9"),
    ({"resample": "cubic"}, r"resample must be one of 0 \(NEAREST\).*; got 'cubic'"),
    ({"device": "gpu"}, "device must be one of torch's, such as 'cuda:0'; got 'gpu'"),
    ({"device": 1.5}, "got 1.5"),
    ({"input_data_format": "last"}, "channels_first, channels_last, or None; got 'last'"),
    ({"return_tensors": "tf"}, "pt, np, or None; got 'tf'"),
]


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_refused_at_construction_and_at_call(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
    with pytest.raises(ValueError, match=message):
        kind()(IMAGE, **options)
    with pytest.raises(ValueError, match=message):
        kind().get_number_of_image_patches(56, 56, options)


@pytest.mark.parametrize("kind", VIDEOS)
@pytest.mark.parametrize(
    ("options", "message"),
    # That one is theirs, and null is its default.
    [case for case in REFUSED if "num_frames" not in case[0]],
    ids=str,
)
def test_clips_refuse_it_likewise(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
    with pytest.raises(ValueError, match=message):
        kind(do_sample_frames=False)(IMAGE[None], **options)


@pytest.mark.parametrize("kind", IMAGES + VIDEOS)
@pytest.mark.parametrize(
    "options",
    [
        {"data_format": "channels_first", "default_to_square": False, "do_pad": False},
        {"pad_size": None, "max_image_size": None, "disable_grouping": None},
        {"do_center_crop": False, "crop_size": None, "size_divisor": None},
        {"patch_size": None, "size": None},
    ],
)
def test_no_ops_are_accepted(kind: Any, options: dict[str, Any]) -> None:
    assert kind(**options).options == kind().options
    if kind in IMAGES:
        kind()(IMAGE, **options)
    else:
        kind()(IMAGE[None], do_sample_frames=False, **options)


@pytest.mark.parametrize("name", ["fps", "max_frames", "max_duration", "do_sample_frames"])
@pytest.mark.parametrize("kind", IMAGES)
def test_options_of_clips_are_unknown_to_images(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option {name}=2; the options are size"):
        kind(**{name: 2})
    with pytest.raises(ValueError, match=f"unknown option {name}=2; the options are size"):
        kind()(IMAGE, **{name: 2})


def test_defaults_are_the_references() -> None:
    from transformers.models.glmga.image_processing_pil_glmga import GlmgaImageProcessorPil as Kind

    options, reference = ImageOptions(), Kind()
    for name in (
        *("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize"),
        *("do_convert_rgb", "patch_size", "temporal_patch_size", "merge_size"),
        "patch_expand_factor",
    ):
        assert getattr(options, name) == getattr(reference, name), name
    assert list(options.image_mean) == list(reference.image_mean)
    assert list(options.image_std) == list(reference.image_std)
    assert options.min_pixels == reference.size["shortest_edge"]
    assert options.max_pixels == reference.size["longest_edge"]


def test_pixel_limits_are_the_sizes_other_names() -> None:
    size = {"shortest_edge": 3136, "longest_edge": 50_000}
    by_size = GlmgaImageProcessor(size=size).options
    assert by_size == GlmgaImageProcessor(min_pixels=3136, max_pixels=50_000).options
    assert by_size == GlmgaImageProcessor(size=size, min_pixels=3136).options
    assert by_size.updated({"max_pixels": 60_000}).max_pixels == 60_000


@pytest.mark.parametrize("kind", IMAGES + VIDEOS)
def test_sizes_and_filters_are_taken_in_every_form(kind: Any) -> None:
    from transformers.image_utils import SizeDict

    class InterpolationMode(enum.Enum):  # as torchvision has it
        BILINEAR = "bilinear"
        NEAREST_EXACT = "nearest-exact"

    size = {"shortest_edge": 3136, "longest_edge": 50_000}
    expected = kind(size=size, patch_size=16, resample=2).options
    for form in (SizeDict(**size), {name: np.int64(value) for name, value in size.items()}):
        for resample in (Image.Resampling.BILINEAR, "bilinear", InterpolationMode.BILINEAR):
            made = kind(size=form, patch_size=np.int32(16), resample=resample).options
            assert made == expected
            assert {type(made.max_pixels), type(made.patch_size)} == {int}
    nearest = kind(resample=InterpolationMode.NEAREST_EXACT).options
    assert nearest == kind(resample=0).options


def test_equal_forms_make_equal_options() -> None:
    from transformers.image_utils import ChannelDimension

    plain = ImageOptions(resample=2, image_mean=0.5, input_data_format="channels_first")  # type: ignore[arg-type]
    assert plain == ImageOptions().updated(
        {
            "resample": Image.Resampling.BILINEAR,
            "image_mean": np.array([0.5, 0.5, 0.5], np.float32),
            "input_data_format": ChannelDimension.FIRST,
        }
    )
    assert plain.image_mean == (0.5, 0.5, 0.5)


def test_calls_leave_the_processor_as_it_was() -> None:
    processor = GlmgaImageProcessor()
    processor(IMAGE, patch_size=16, size={"shortest_edge": 3136, "longest_edge": 50_000})
    assert processor.options == ImageOptions()


def test_filters_and_devices_that_a_class_lacks() -> None:
    for kind in IMAGES[:3]:
        with pytest.raises(ValueError, match="resample=LANCZOS is not among torch's NEAREST, BIL"):
            kind(resample=1)
    with pytest.raises(ValueError, match="device='cuda' needs torch's class, GlmgaImageProcessor"):
        GlmgaImageProcessorPil(device="cuda")
    GlmgaImageProcessorPil(device="cpu")(IMAGE)


@pytest.mark.parametrize("kind", IMAGES[:3] + VIDEOS)
def test_results_are_where_they_are_wanted(kind: Any) -> None:
    """A device without memory stands for one that this machine may lack."""
    processor, given = (
        (kind(), IMAGE) if kind in IMAGES else (kind(do_sample_frames=False), IMAGE[None])
    )
    for device in ("cpu", torch.device("meta")):
        values, grid = processor(given, device=device).values()
        assert values.device.type == grid.device.type == torch.device(device).type
    with pytest.raises(ValueError, match="device='cuda:99' is not to be had here: "):
        processor(given, device="cuda:99")


@pytest.mark.parametrize("kind", IMAGES + VIDEOS)
def test_results_are_of_the_kind_that_is_wanted(kind: Any) -> None:
    from transformers import TensorType

    processor, given = (
        (kind(), IMAGE) if kind in IMAGES else (kind(do_sample_frames=False), IMAGE[None])
    )
    own = np.ndarray if kind is GlmgaImageProcessorPil else torch.Tensor
    wanted = {"np": np.ndarray, "pt": torch.Tensor, None: own, TensorType.NUMPY: np.ndarray}
    for name, made in wanted.items():
        for features in (
            processor(given, return_tensors=name),
            kind(**vars(processor.options) | {"return_tensors": name})(given),
        ):
            assert [type(value) for value in features.values()] == [made, made]
