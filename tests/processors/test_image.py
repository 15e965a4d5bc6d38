from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processors import (
    AspectRatioError,
    GlmgaImageProcessor,
    GlmgaImageProcessorPil,
    ImageFeatures,
    decode_image,
)

PROCESSORS = {"torch": GlmgaImageProcessor, "pil": GlmgaImageProcessorPil}
BOTH = pytest.mark.parametrize("kind", list(PROCESSORS.values()))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers.models.glmga.image_processing_pil_glmga import GlmgaImageProcessorPil as Kind

    return Kind()


def test_levels_are_the_references(
    image_case: dict[str, Any], goldens: Path, golden_levels: dict[str, np.ndarray]
) -> None:
    processor = PROCESSORS[image_case["backend"]](**image_case["kwargs"])
    pixels = decode_image((goldens / image_case["source"]).read_bytes()).pixels
    patches, grid = processor.patches(pixels)
    assert list(grid) == image_case["grid_thw"]
    expected = golden_levels[image_case["name"]].reshape(len(patches), 3, 2, -1)
    for frame in range(2):
        np.testing.assert_array_equal(patches, expected[:, :, frame].reshape(len(patches), -1))
    # And whole, through the public door, with no arithmetic on the levels.
    raw = processor(pixels, do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    np.testing.assert_array_equal(raw, golden_levels[image_case["name"]])


def test_pixel_values_are_the_references_on_photos(photos: list[Path], reference: Any) -> None:
    images = [Image.open(path) for path in photos]
    expected = reference(images, return_tensors="np")
    features = GlmgaImageProcessorPil()(images)
    np.testing.assert_array_equal(features.image_grid_thw, expected["image_grid_thw"])
    np.testing.assert_allclose(features.pixel_values, expected["pixel_values"], atol=5e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 3136, "longest_edge": 100_000}},
        {"patch_size": 16, "temporal_patch_size": 1, "merge_size": 1},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": 60.0},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
        {"resample": Image.Resampling.LANCZOS},
        {"resample": 0},
    ],
    ids=str,
)
def test_options_do_what_the_references_do(options: dict[str, Any], reference: Any) -> None:
    image = noise(200, 301)
    expected = reference(image, return_tensors="np", **options)
    for features in (
        GlmgaImageProcessorPil(**options)(image),
        GlmgaImageProcessorPil()(image, **options),
    ):
        np.testing.assert_array_equal(features.image_grid_thw, expected["image_grid_thw"])
        np.testing.assert_allclose(
            features.pixel_values, expected["pixel_values"], rtol=1e-6, atol=1e-6
        )


def test_torch_pixel_values_against_float64(photos: list[Path]) -> None:
    processor = GlmgaImageProcessor()
    pixels = decode_image(photos[0].read_bytes()).pixels
    patches, grid = processor.patches(pixels)
    levels = np.repeat(patches.astype(np.float64).reshape(len(patches), 3, 1, -1), 2, axis=2)
    mean = np.array(processor.options.image_mean).reshape(3, 1, 1)
    std = np.array(processor.options.image_std).reshape(3, 1, 1)
    expected = ((levels / 255 - mean) / std).reshape(len(patches), -1)
    features = processor(pixels)
    assert features.pixel_values.dtype == torch.float32
    assert features.image_grid_thw.tolist() == [list(grid)]
    np.testing.assert_allclose(features.pixel_values.numpy(), expected, atol=1e-6)


@BOTH
def test_every_input_form_gives_the_same(kind: Any) -> None:
    image = noise(90, 130)
    processor = kind(return_tensors="np")
    expected = processor(image)
    planar = torch.from_numpy(image).permute(2, 0, 1)
    forms: list[Any] = [
        Image.fromarray(image),
        [image],
        (torch.from_numpy(image),),
        planar,
        planar[None],
        [[planar.to(torch.int64)]],
        [image[None]],
    ]
    for form in forms:
        features = processor(form)
        np.testing.assert_array_equal(features.pixel_values, expected.pixel_values)
        np.testing.assert_array_equal(features.image_grid_thw, expected.image_grid_thw)


@BOTH
def test_a_batch_is_its_images_one_after_another(kind: Any) -> None:
    images = [noise(90, 130), noise(200, 60), noise(90, 130, seed=1)]
    processor = kind(return_tensors="np")
    together = processor(images)
    alone = [processor(image) for image in images]
    np.testing.assert_array_equal(
        together.pixel_values, np.concatenate([one.pixel_values for one in alone])
    )
    np.testing.assert_array_equal(
        together.image_grid_thw, np.concatenate([one.image_grid_thw for one in alone])
    )


def test_the_result_is_a_mapping() -> None:
    features = GlmgaImageProcessor()(noise(60, 60))
    assert isinstance(features, ImageFeatures)
    assert list(features) == ["pixel_values", "image_grid_thw"]
    assert len(features) == 2
    assert dict(**features)["pixel_values"] is features.pixel_values
    assert features.image_grid_thw.dtype == torch.int64
    with pytest.raises(KeyError):
        features["_resize"]


def test_each_class_returns_what_it_works_in() -> None:
    image = noise(60, 60)
    assert isinstance(GlmgaImageProcessor()(image).pixel_values, torch.Tensor)
    assert isinstance(GlmgaImageProcessorPil()(image).pixel_values, np.ndarray)
    chosen = GlmgaImageProcessorPil()(image, return_tensors="pt")
    assert isinstance(chosen.pixel_values, torch.Tensor)
    assert isinstance(chosen.image_grid_thw, torch.Tensor)


def test_exif_of_pil_images_is_not_applied() -> None:
    image = Image.fromarray(noise(60, 120))
    image.getexif()[274] = 6
    _, rows, columns = GlmgaImageProcessor()(image).image_grid_thw[0].tolist()
    assert rows < columns


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_expand_factor": 2},
        {"temporal_patch_size": 1},
        {"patch_size": 16, "merge_size": 1},
        {"size": {"shortest_edge": 3136, "longest_edge": 60_000}},
        {"max_pixels": 60_000},
        {"do_resize": False},
    ],
    ids=str,
)
def test_counts_agree_with_what_is_made(kind: Any, options: dict[str, Any]) -> None:
    sizes = [(56, 112)] if "do_resize" in options else [(1, 1), (56, 112), (333, 100), (700, 900)]
    for height, width in sizes:
        image = np.zeros((height, width, 3), np.uint8)
        made = kind(**options).patches(image)[0]
        assert kind(**options).get_number_of_image_patches(height, width) == len(made)
        assert kind().get_number_of_image_patches(height, width, options) == len(made)
        features = kind(input_data_format="channels_last")(image, **options)
        assert len(features.pixel_values) == len(made)


def test_do_resize_false_takes_only_sizes_that_divide() -> None:
    processor = GlmgaImageProcessor(do_resize=False)
    image = noise(56, 84)
    patches, grid = processor.patches(image)
    assert grid == (1, 4, 6)
    np.testing.assert_array_equal(patches[0].reshape(3, 14, 14), image[:14, :14].transpose(2, 0, 1))
    for refuse in (processor.patches, processor):
        with pytest.raises(ValueError, match="= 28, got 56 x 80; resize them"):
            refuse(noise(56, 80))
    with pytest.raises(ValueError, match="got 56 x 80"):
        processor.get_number_of_image_patches(56, 80)


def test_extreme_ratios_carry_their_code() -> None:
    with pytest.raises(AspectRatioError) as caught:
        GlmgaImageProcessor().patches(np.zeros((1, 201, 3), np.uint8))
    assert caught.value.code == "aspect_ratio"
    assert GlmgaImageProcessor().patches(np.zeros((1, 200, 3), np.uint8))[1] == (1, 2, 400)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))]
)
def test_patches_takes_decoded_images_only(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\], got"):
        GlmgaImageProcessor().patches(image)


def test_float_images_warn_once_and_go_on() -> None:
    images = [np.random.default_rng(0).random((3, 60, 60)), np.full((3, 60, 60), 0.5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = GlmgaImageProcessor()(images)
    assert [str(item.message).split(";")[0] for item in caught] == [
        "floating-point images count as levels 0..255 and are rescaled, "
        f"but these hold {images[0].min():.4g}..{images[0].max():.4g}"
    ]
    assert features.pixel_values.shape == (2 * 36, 1176)
    GlmgaImageProcessor()(images, do_rescale=False)  # as they should be passed: no warning


def test_float_levels_are_close_to_uint8_levels() -> None:
    image = np.random.default_rng(0).integers(64, 192, (100, 140, 3), dtype=np.uint8)
    for kind in PROCESSORS.values():
        plain = kind(return_tensors="np", do_normalize=False)
        np.testing.assert_allclose(
            plain(image.astype(np.float64)).pixel_values, plain(image).pixel_values, atol=1.01 / 255
        )
