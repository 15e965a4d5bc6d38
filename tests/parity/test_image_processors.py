"""The image classes against transformers' Pillow classes and against torch's own resize.

transformers' torch classes want torchvision: what they add, its resize, is torch's `interpolate`,
and the stored levels in `tests/processors/test_image.py` are theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil
from transformers.models.glmga import image_processing_pil_glmga as reference

from processors import (
    Glm4vImageProcessor,
    Glm46VImageProcessor,
    GlmgaImageProcessor,
    GlmgaImageProcessorPil,
)
from tests.parity.generated import generated

Pixels = np.ndarray[Any, np.dtype[Any]]

REFERENCES = [reference.GlmgaImageProcessorPil, Glm46VImageProcessorPil, Glm4vImageProcessorPil]
TORCH = [GlmgaImageProcessor, Glm46VImageProcessor, Glm4vImageProcessor]
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False}

sides = st.integers(1, 400)
patchings = st.fixed_dictionaries(
    {
        "patch_size": st.sampled_from([14, 16]),
        "temporal_patch_size": st.sampled_from([1, 2, 4]),
        "merge_size": st.sampled_from([1, 2, 3]),
        "size": st.builds(
            lambda low, more: {"shortest_edge": low, "longest_edge": low + more},
            st.integers(1, 40_000),
            st.integers(0, 200_000),
        ),
    }
)
normalisations = st.fixed_dictionaries(
    {},
    optional={
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
        "do_normalize": st.booleans(),
        "image_mean": st.sampled_from([[0.5, 0.4, 0.3], [0.0, 0.0, 0.0]]),
        "image_std": st.sampled_from([[0.5, 0.4, 0.3], [1.0, 1.0, 1.0]]),
    },
)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_equal(features: Any, expected: Any, tolerance: float = 0.0) -> None:
    np.testing.assert_array_equal(features.image_grid_thw, expected["image_grid_thw"])
    np.testing.assert_allclose(
        features.pixel_values, expected["pixel_values"], rtol=tolerance, atol=tolerance
    )


def resized_size(height: int, width: int, options: dict[str, Any]) -> tuple[int, int]:
    """The reference's, for what its Pillow class forgets: `patch_expand_factor`."""
    factor = options["patch_size"] * options["merge_size"] * options.get("patch_expand_factor", 1)
    frames = options["temporal_patch_size"]
    size = options["size"]
    budget = (size["shortest_edge"], size["longest_edge"])
    return reference.smart_resize(frames, height, width, frames, factor, *budget)


@generated(120)
@given(
    height=sides,
    width=sides,
    patching=patchings,
    resample=st.sampled_from(list(Image.Resampling)),
    normalisation=normalisations,
    kind=st.sampled_from(REFERENCES),
)
def test_the_pillow_class_equals_transformers(
    height: int,
    width: int,
    patching: dict[str, Any],
    resample: Image.Resampling,
    normalisation: dict[str, Any],
    kind: Any,
) -> None:
    image = Image.fromarray(noise(height, width))
    options = patching | {"resample": resample}
    ours = GlmgaImageProcessorPil(**options)
    try:
        expected = kind(**options)(image, return_tensors="np", **LEVELS)
    except ValueError as error:
        assert "aspect ratio" in str(error)
        with pytest.raises(ValueError, match="aspect ratio"):
            ours(image)
        return
    assert_equal(ours(image, **LEVELS), expected)
    # transformers rounds to float32 between rescaling and normalising, once more than we do.
    expected = kind(**options)(image, return_tensors="np", **normalisation)
    assert_equal(ours(image, **normalisation), expected, tolerance=1e-6)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pillow_modes_equal_transformers(mode: str) -> None:
    image = Image.fromarray(noise(45, 61, channels=4)).convert(mode)
    expected = REFERENCES[0]()(image, return_tensors="np", **LEVELS)
    assert_equal(GlmgaImageProcessorPil()(image, **LEVELS), expected)


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("P", 3), ("P", bytes(range(0, 256, 16))), ("L", 130), ("RGB", (1, 2, 3)), ("1", 0)],
)
def test_colour_keys_equal_transformers(mode: str, transparency: Any) -> None:
    pixels = noise(45, 61)
    pixels[:20] = (1, 2, 3)
    image = Image.fromarray(pixels).convert(mode)
    image.info["transparency"] = transparency
    expected = REFERENCES[0]()(image, return_tensors="np", **LEVELS)
    assert_equal(GlmgaImageProcessorPil()(image, **LEVELS), expected)


@generated(40)
@given(
    height=st.integers(5, 200),
    width=st.integers(5, 200),
    channels=st.sampled_from([1, 3, 4]),
    is_first=st.booleans(),
    is_tensor=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.int32, np.int64]),
)
def test_arrays_of_levels_equal_transformers(
    height: int, width: int, channels: int, is_first: bool, is_tensor: bool, dtype: Any
) -> None:
    image: Any = noise(height, width, channels).astype(dtype)
    if is_first:
        image = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    if is_tensor:
        image = torch.from_numpy(image)
    expected = REFERENCES[0]()(image, return_tensors="np", **LEVELS)
    assert_equal(GlmgaImageProcessorPil()(image, **LEVELS), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_that_needs_no_resizing_equals_transformers(dtype: Any) -> None:
    # Resized, it is not: transformers goes over 8 bits, where we stay in floating point.
    unit = noise(56, 84).astype(dtype) / dtype(255)
    options = {"do_resize": False, "do_rescale": False}
    expected = REFERENCES[0](**options)(unit, return_tensors="np")
    # It normalises in the array's own type, of which float16 has 11 bits.
    tolerance = 2e-3 if dtype == np.float16 else 1e-6
    assert_equal(GlmgaImageProcessorPil(**options)(unit), expected, tolerance)


@generated(40)
@given(
    height=sides,
    width=sides,
    patching=patchings,
    patch_expand_factor=st.integers(1, 3),
    resample=st.sampled_from([Image.Resampling.BICUBIC, Image.Resampling.BILINEAR]),
    kind=st.sampled_from([*TORCH, GlmgaImageProcessorPil]),
)
def test_every_class_resizes_as_its_backend_does(
    height: int,
    width: int,
    patching: dict[str, Any],
    patch_expand_factor: int,
    resample: Image.Resampling,
    kind: Any,
) -> None:
    options = patching | {"patch_expand_factor": patch_expand_factor, "resample": resample}
    image = Image.fromarray(noise(height, width))
    try:
        size = resized_size(height, width, options)
    except ValueError:
        with pytest.raises(ValueError, match="aspect ratio"):
            kind(**options)(image)
        return
    if kind is GlmgaImageProcessorPil:
        resized = np.asarray(image.resize(size[::-1], resample))
    else:
        planes = torch.from_numpy(noise(height, width)).permute(2, 0, 1)[None].contiguous()
        planes = F.interpolate(planes, size, mode=resample.name.lower(), antialias=True)
        resized = planes[0].permute(1, 2, 0).numpy()
    uncut = {name: value for name, value in patching.items() if name != "size"}
    expected = REFERENCES[0](**uncut, do_resize=False)(
        Image.fromarray(resized), return_tensors="np", **LEVELS
    )
    assert_equal(kind(**options)(image, return_tensors="np", **LEVELS), expected)


@generated(80)
@given(
    height=sides,
    width=sides,
    patching=patchings,
    patch_expand_factor=st.integers(1, 3),
    do_resize=st.booleans(),
    kind=st.sampled_from([*TORCH, GlmgaImageProcessorPil]),
)
def test_counts_agree_with_what_every_class_makes(
    height: int,
    width: int,
    patching: dict[str, Any],
    patch_expand_factor: int,
    do_resize: bool,
    kind: Any,
) -> None:
    options = patching | {"patch_expand_factor": patch_expand_factor, "do_resize": do_resize}
    if not do_resize:
        block = patching["patch_size"] * patching["merge_size"]
        height, width = (block * (1 + side // block) for side in (height, width))
    image = Image.fromarray(noise(height, width))
    try:
        made = len(kind(**options)(image).pixel_values)
    except ValueError as error:
        with pytest.raises(type(error), match="aspect ratio"):
            kind().get_number_of_image_patches(height, width, options)
        return
    assert kind(**options).get_number_of_image_patches(height, width) == made
    assert kind().get_number_of_image_patches(height, width, options) == made
    assert len(kind()(image, **options).pixel_values) == made
    assert len(kind(**options).patches(np.asarray(image))[0]) == made


@generated(150)
@given(height=sides, width=sides, patching=patchings, kind=st.sampled_from(REFERENCES))
def test_counts_equal_transformers(
    height: int, width: int, patching: dict[str, Any], kind: Any
) -> None:
    # transformers forgets overrides of the temporal size: it is given at construction.
    try:
        expected = kind(**patching).get_number_of_image_patches(height, width)
    except ValueError:
        return
    ours = GlmgaImageProcessorPil(**patching)
    assert ours.get_number_of_image_patches(height, width) == expected
