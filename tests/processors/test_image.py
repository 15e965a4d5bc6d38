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
    Glm4vImageProcessor,
    Glm46VImageProcessor,
    GlmgaImageProcessor,
    GlmgaImageProcessorPil,
    ImageFeatures,
    create_glm4v_image_processor,
    decode_image,
)
from tests.support.sizes import SIZES

PROCESSORS = {"torch": GlmgaImageProcessor, "pil": GlmgaImageProcessorPil}
ALL = pytest.mark.parametrize(
    "kind",
    [GlmgaImageProcessor, Glm46VImageProcessor, Glm4vImageProcessor, GlmgaImageProcessorPil],
)


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


@ALL
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
        image[::-1].copy()[::-1],
        np.asfortranarray(image),
        np.ma.masked_array(image),
        image.astype(">i4"),
        image.astype(">u2") * 257,
        planar.to(torch.uint16) * 257,
        np.lib.stride_tricks.as_strided(image, image.shape, image.strides, writeable=False),
    ]
    for form in forms:
        features = processor(form)
        np.testing.assert_array_equal(features.pixel_values, expected.pixel_values)
        np.testing.assert_array_equal(features.image_grid_thw, expected.image_grid_thw)


@ALL
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


@ALL
def test_a_list_may_mix_kinds_sizes_and_layouts(kind: Any) -> None:
    images = [noise(60, 90), noise(200, 60, seed=1), noise(61, 61, seed=2)]
    processor = kind(return_tensors="np")
    mixed = [
        Image.fromarray(images[0]),
        [torch.from_numpy(images[1]).permute(2, 0, 1)],
        images[2][None],
    ]
    features, expected = processor(tuple(mixed)), processor(images)
    np.testing.assert_array_equal(features.pixel_values, expected.pixel_values)
    np.testing.assert_array_equal(features.image_grid_thw, expected.image_grid_thw)


@ALL
def test_grey_is_the_same_in_every_form(kind: Any) -> None:
    grey = noise(60, 90)[..., 0]
    processor = kind(return_tensors="np")
    expected = processor(np.repeat(grey[..., None], 3, axis=2))
    forms: list[Any] = [grey, grey[..., None], grey[None], torch.from_numpy(grey)]
    for form in [*forms, Image.fromarray(grey)]:
        np.testing.assert_array_equal(processor(form).pixel_values, expected.pixel_values)


@ALL
def test_an_animation_is_the_frame_that_it_stands_at(kind: Any, tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(60, 90, seed)) for seed in range(2)]
    path = tmp_path / "two.png"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    processor = kind(return_tensors="np")
    with Image.open(path) as image:
        for index in (1, 0):
            image.seek(index)
            expected = processor(frames[index]).pixel_values
            np.testing.assert_array_equal(processor(image).pixel_values, expected)


@ALL
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_floating_point_of_every_width_is_the_same(kind: Any, dtype: Any) -> None:
    image = noise(60, 90)
    processor = kind(return_tensors="np")
    expected = processor(image.astype(np.float64)).pixel_values
    np.testing.assert_array_equal(processor(image.astype(dtype)).pixel_values, expected)
    tensor = torch.from_numpy(image).to(torch.float32).requires_grad_()
    np.testing.assert_array_equal(processor(tensor).pixel_values, expected)


@ALL
@SIZES
def test_sizes_of_patches(kind: Any, sizes: dict[str, int]) -> None:
    """By the definition: every patch in its place, and each frame of it the same."""
    P, m, T = sizes["patch_size"], sizes["merge_size"], sizes["temporal_patch_size"]
    rows, columns = 2 * m, 3 * m
    image = noise(rows * P, columns * P)
    processor = kind(**sizes, do_resize=False, return_tensors="np")
    features = processor(image, do_rescale=False, do_normalize=False)
    expected = [
        np.repeat(image[y * P : y * P + P, x * P : x * P + P].transpose(2, 0, 1)[:, None], T, 1)
        for top in range(0, rows, m)
        for left in range(0, columns, m)
        for y in range(top, top + m)
        for x in range(left, left + m)
    ]
    np.testing.assert_array_equal(
        features.pixel_values, np.stack(expected).reshape(rows * columns, -1)
    )
    assert features.image_grid_thw.tolist() == [[1, rows, columns]]
    assert processor.get_number_of_image_patches(rows * P, columns * P) == rows * columns
    seen = processor(image, image_mean=0.5, image_std=0.25).pixel_values
    np.testing.assert_allclose(
        seen, (features.pixel_values.astype(np.float64) / 255 - 0.5) / 0.25, atol=1e-6
    )
    resized = kind(**sizes, return_tensors="np")
    grid = resized(noise(333, 100)).image_grid_thw[0]
    assert grid[0] == 1
    assert grid[1] % m == grid[2] % m == 0
    assert resized.get_number_of_image_patches(333, 100) == grid.prod()


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


def test_the_documentations_processor_of_larger_patches() -> None:
    processor = create_glm4v_image_processor(patch_size=16, merge_size=2)
    assert type(processor) is Glm4vImageProcessor
    image = Image.fromarray(noise(300, 400)).resize((512, 512))
    inputs = processor.preprocess([image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert inputs["pixel_values"].shape == (1024, 3 * 2 * 16 * 16)


def test_exif_of_pil_images_is_not_applied() -> None:
    image = Image.fromarray(noise(60, 120))
    image.getexif()[274] = 6
    _, rows, columns = GlmgaImageProcessor()(image).image_grid_thw[0].tolist()
    assert rows < columns


@ALL
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


@ALL
def test_extreme_ratios_carry_their_code(kind: Any) -> None:
    with pytest.raises(AspectRatioError) as caught:
        kind().patches(np.zeros((5, 1001, 3), np.uint8))
    assert caught.value.code == "aspect_ratio"
    assert isinstance(caught.value, ValueError)
    line = "the aspect ratio must be at most 200, got 200.2 (5 x 1001); crop the image"
    assert str(caught.value) == line
    assert kind().patches(np.zeros((5, 1000, 3), np.uint8))[1] == (1, 2, 400)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))]
)
def test_patches_takes_decoded_images_only(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\], got"):
        GlmgaImageProcessor().patches(image)


@ALL
def test_float_images_warn_the_caller_once_and_go_on(kind: Any) -> None:
    images = [np.random.default_rng(0).random((3, 60, 60)), np.full((3, 60, 60), 0.5)]
    processor = kind()
    for call in (processor, processor.preprocess):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            features = call(images)
        assert [(str(item.message).split(";")[0], item.filename) for item in caught] == [
            (
                "floating-point images count as levels 0..255 and are rescaled, "
                f"but these hold {images[0].min():.4g}..{images[0].max():.4g}",
                __file__,
            )
        ]
        assert features.pixel_values.shape == (2 * 36, 1176)
    processor(images, do_rescale=False)  # as they should be passed: no warning


def test_float_levels_are_close_to_uint8_levels() -> None:
    image = np.random.default_rng(0).integers(64, 192, (100, 140, 3), dtype=np.uint8)
    for kind in PROCESSORS.values():
        plain = kind(return_tensors="np", do_normalize=False)
        np.testing.assert_allclose(
            plain(image.astype(np.float64)).pixel_values, plain(image).pixel_values, atol=1.01 / 255
        )
