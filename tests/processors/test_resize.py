from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from processors import (
    AspectRatioError,
    GlmgaImageProcessor,
    ImageOptions,
    resize_pil,
    resize_torch,
    smart_resize,
)
from processors.sizes import reduced_size, reduction, target_size

IMAGE = np.zeros((30, 30, 3), np.uint8)


def test_matches_the_reference(resize_case: dict[str, Any]) -> None:
    case = dict(resize_case)
    error, expected = case.pop("error", None), case.pop("result", None)
    if error is None:
        assert list(smart_resize(**case)) == expected
    else:
        kind = AspectRatioError if "aspect ratio" in error else ValueError
        with pytest.raises(kind):
            smart_resize(**case)


def test_rounds_half_to_even() -> None:
    # 5 frames budget as round(2.5) * 2 = 4 of them: 4 * 56 * 56 fits, 6 * 56 * 56 would not.
    assert smart_resize(5, 56, 56, max_pixels=4 * 56 * 56, min_pixels=1) == (56, 56)
    assert smart_resize(2, 70, 98, min_pixels=1) == (56, 112)  # 2.5 -> 2 and 3.5 -> 4 blocks


def test_a_side_of_one_is_scaled_up() -> None:
    assert smart_resize(2, 1, 1) == (84, 84)


def test_the_ratio_limit_is_inclusive() -> None:
    assert smart_resize(2, 28, 28 * 200) == (28, 5600)
    with pytest.raises(AspectRatioError, match=r"at most 200, got 200\.1 \(28 x 5602\)"):
        smart_resize(2, 28, 5602)


@pytest.mark.parametrize(
    "size", [(0, 10), (10, 0), (-1, 10), (100.5, 10), (10, math.nan), (math.inf, 10), ("56", 56)]
)
def test_sides_that_no_image_has_are_refused(size: tuple[Any, Any]) -> None:
    message = re.escape(f"whole number of pixels a side, at least one, got {size[0]!r} x {size[1]}")
    with pytest.raises(ValueError, match=message):
        smart_resize(2, *size)
    for options in (ImageOptions(), ImageOptions(do_resize=False)):
        with pytest.raises(ValueError, match=f"got {size[0]!r} x {size[1]}"):
            target_size(2, *size, options)
    for processor in (GlmgaImageProcessor(), GlmgaImageProcessor(do_resize=False)):
        with pytest.raises(ValueError, match=f"got {size[0]!r} x {size[1]}"):
            processor.get_number_of_image_patches(*size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "factor must be an integer of at least 1, got 0"),
        ({"factor": 28.5}, "factor must be an integer of at least 1, got 28.5"),
        ({"temporal_factor": 0}, "temporal_factor must be an integer of at least 1, got 0"),
        ({"num_frames": 2.5}, "num_frames must be an integer of at least 1, got 2.5"),
        ({"num_frames": 1}, r"at least temporal_factor \(2\), got 1; repeat the last frame"),
        ({"min_pixels": 9, "max_pixels": 8}, "at most max_pixels, .* got 9 and 8"),
        ({"min_pixels": math.nan}, "got nan and 9633792"),
        ({"min_pixels": 0, "max_pixels": 0}, "got 0 and 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smart_resize(**{"num_frames": 2, "height": 56, "width": 56} | options)


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    frames=st.integers(2, 40),
    factor=st.sampled_from([28, 32, 56]),
    low=st.integers(3136, 12544),
    high=st.integers(100_000, 12_000_000),
)
def test_results_divide_and_keep_the_budget(
    size: tuple[int, int], frames: int, factor: int, low: int, high: int
) -> None:
    height, width = size
    # Beyond this ratio one block of height alone may exceed the budget, and the block wins.
    ratio = max(height, width) / min(height, width)
    assume(ratio <= 200 and (frames + 1) * factor * factor * (ratio + 2) <= high)
    new_height, new_width = smart_resize(
        frames, height, width, factor=factor, min_pixels=low, max_pixels=high
    )
    assert new_height % factor == new_width % factor == 0
    volume = new_height * new_width * frames
    # The budget is checked with the number of frames rounded to even, off by one at most.
    assert new_height * new_width * (frames - 1) <= high
    assert volume * (frames + 1) / frames >= low


@pytest.mark.parametrize(
    ("side", "factor"),
    [(20, 1), (56, 1), (558, 1), (559, 2), (1116, 2), (1117, 4), (2232, 4), (2233, 8), (9000, 8)],
)
def test_a_picture_is_reduced_to_no_less_than_it_is_resized_to(side: int, factor: int) -> None:
    assert reduction(side, side, ImageOptions(max_pixels=2 * 290 * 290)) == factor  # 280 x 280


def test_a_picture_of_no_size_to_resize_to_is_not_reduced() -> None:
    assert reduction(28, 28 * 201, ImageOptions(min_pixels=1, max_pixels=2 * 28 * 28)) == 1
    assert reduction(560, 561, ImageOptions(do_resize=False)) == 1
    assert reduction(560, 560, ImageOptions(do_resize=False)) == 1


@given(st.integers(28, 4000), st.integers(28, 4000), st.integers(1000, 10**6))
def test_what_is_reduced_is_never_enlarged(height: int, width: int, budget: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    options = ImageOptions(min_pixels=1, max_pixels=2 * budget)
    wanted, factor = target_size(2, height, width, options), reduction(height, width, options)
    if factor > 1:
        assert all(np.greater_equal(reduced_size(height, width, factor), wanted))
    if factor < 8:
        assert not all(np.greater_equal(reduced_size(height, width, 2 * factor), wanted))


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (60, 45), (301, 127)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_torch_fast_path_gives_the_planar_kernels_bits(
    size: tuple[int, int], resample: Image.Resampling
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    planar = torch.from_numpy(image).permute(2, 0, 1).contiguous()[None]
    mode = resample.name.lower()
    expected = F.interpolate(planar, (112, 84), mode=mode, antialias=True)[0].permute(1, 2, 0)
    resized = resize_torch(image, height=112, width=84, resample=resample)
    assert resized.dtype == np.uint8
    assert resized.flags.c_contiguous
    np.testing.assert_array_equal(resized, expected.numpy())


def test_torchs_nearest_is_the_exact_one() -> None:
    """Pillow's too: the pixel at the centre, of four the third."""
    image = np.repeat(np.arange(8, dtype=np.uint8)[:, None, None], 3, axis=2)
    nearest = Image.Resampling.NEAREST
    resized = resize_torch(image, height=2, width=1, resample=nearest)
    assert resized[:, 0, 0].tolist() == [2, 6]
    np.testing.assert_array_equal(resized, resize_pil(image, height=2, width=1, resample=nearest))


def test_a_filter_that_torch_lacks_is_refused() -> None:
    message = "resample=LANCZOS is not among torch's NEAREST, BILINEAR, BICUBIC; use resize_pil"
    with pytest.raises(ValueError, match=message):
        resize_torch(IMAGE, height=28, width=28, resample=Image.Resampling.LANCZOS)


@pytest.mark.parametrize("resize", [resize_torch, resize_pil])
@pytest.mark.parametrize("size", [(0, 28), (28, 0), (28.5, 28)])
def test_sizes_that_no_image_has_are_refused(resize: Any, size: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=f"at least one, got {size[0]} x {size[1]}"):
        resize(IMAGE, height=size[0], width=size[1])


def test_torch_takes_read_only_arrays() -> None:
    image = np.zeros((30, 30, 3), np.uint8)
    image.flags.writeable = False
    assert resize_torch(image, height=28, width=28).shape == (28, 28, 3)


@pytest.mark.parametrize("resize", [resize_torch, resize_pil])
def test_float_images_are_resized_in_float(resize: Any) -> None:
    image = np.random.default_rng(0).integers(64, 192, (50, 40, 3), dtype=np.uint8)
    levels = resize(image, height=28, width=56)
    values = resize(image.astype(np.float32), height=28, width=56)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, levels, atol=1.01)  # rounding, once or after each pass
