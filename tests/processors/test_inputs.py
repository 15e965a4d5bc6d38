from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from processors.inputs import flatten_images, to_rgb
from processors.options import ImageOptions

PLAIN = ImageOptions()


def convert(image: Any, **options: Any) -> np.ndarray:
    return to_rgb(image, PLAIN.updated(options))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 257, 65535]], ">u2"), [0, 1, 255]),
        (np.array([[0, 128, 255]], ">i4"), [0, 128, 255]),
        (np.array([[0, 127.5, 255]], ">f8"), [0.0, 127.5, 255.0]),
        (np.array([[0, 127.5, 255]], np.float16), [0.0, 127.5, 255.0]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 128, 255]], np.int64), [0, 128, 255]),
        (np.array([[0.0, 127.5, 255.0]]), [0.0, 127.5, 255.0]),
        (torch.tensor([[0, 128, 255]]), [0, 128, 255]),
        (torch.tensor([[0, 257, 65535]], dtype=torch.uint16), [0, 1, 255]),
        (torch.tensor([[False, True]]), [0, 255]),
        (torch.tensor([[0.0, 128.0]], dtype=torch.bfloat16), [0.0, 128.0]),
        (torch.tensor([[0.0, 128.0]], requires_grad=True), [0.0, 128.0]),
    ],
)
def test_levels(values: Any, expected: list[float]) -> None:
    image = convert(values)
    assert image.shape == (1, len(expected), 3)
    assert image.dtype == (np.float32 if isinstance(expected[0], float) else np.uint8)
    for channel in range(3):
        assert image[0, :, channel].tolist() == expected


def test_alpha_is_composited_on_white() -> None:
    pixel = np.array([[[10, 100, 200, 51]]], np.uint8)  # a fifth opaque
    image = np.tile(pixel, (5, 5, 1))
    assert convert(image)[0, 0].tolist() == [206, 224, 244]
    np.testing.assert_array_equal(convert(image), convert(Image.fromarray(image)))
    np.testing.assert_allclose(convert(image.astype(np.float32))[0, 0], [206, 224, 244])
    unit = convert(image / 255, do_rescale=False)
    np.testing.assert_allclose(unit[0, 0] * 255, [206, 224, 244], rtol=1e-6)


def test_premultiplied_grey_is_composited_on_white() -> None:
    grey = Image.new("LA", (3, 3), (100, 51))  # a fifth opaque
    assert convert(grey.convert("La"))[0, 0].tolist() == [224, 224, 224]
    np.testing.assert_array_equal(convert(grey.convert("La")), convert(grey))


def test_wide_pillow_modes_are_scaled_not_clipped() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    assert convert(Image.fromarray(values))[0, :, 0].tolist() == [0, 128, 255]
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    assert convert(wide)[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match=r"mode I must hold 16-bit levels.*got 0\.\.70000"):
        convert(Image.fromarray(np.array([[0, 70000]], np.int32)))
    floats = convert(Image.fromarray(np.array([[0.0, 99.5]], np.float32)))
    assert floats.dtype == np.float32
    assert floats[0, :, 0].tolist() == [0, 99.5]


def test_input_data_format_decides() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(convert(image, input_data_format="channels_last"), image)
    np.testing.assert_array_equal(
        convert(image, input_data_format="channels_first"), image.transpose(1, 2, 0)
    )


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((3, 9, 3), np.uint8), {}, r"\(3, 9, 3\) could be read in two ways"),
        (np.zeros((9, 9, 2), np.uint8), {}, r"1, 3 or 4 channels, .*, got shape \(9, 9, 2\)"),
        (
            np.zeros((9, 9, 3), np.uint8),
            {"input_data_format": "channels_first"},
            r"'channels_first' expects 1, 3 or 4 channels there, got shape \(9, 9, 3\)",
        ),
        (np.zeros((1, 1, 1, 9, 9), np.uint8), {}, "2 or 3 dimensions"),
        (np.zeros((0, 9, 3), np.uint8), {}, r"at least one pixel a side, got shape \(0, 9, 3\)"),
        (Image.new("RGB", (0, 4)), {}, r"at least one pixel a side, got \(0, 4\)"),
        (np.zeros(9, np.uint8), {}, r"an image has 2 or 3 dimensions .*, got shape \(9,\)"),
        (np.array([None, None]), {}, r"of objects, shape \(2,\), .* different shapes as a list"),
        (np.diag([0, np.nan]), {}, "must be finite .*, got nan at row 1, column 1, channel 0; rep"),
        (torch.full((3, 9, 9), -torch.inf), {}, "got -inf at row 0, column 0, channel 0"),
        (np.full((9, 9), 1e300), {}, r"within float32, got 1e\+300"),
        (np.array([[0, 256]]), {}, r"int64 images must hold levels 0\.\.255, got 0\.\.256"),
        (np.array([[-1, 0]], np.int16), {}, r"got -1\.\.0"),
        (np.zeros((9, 9), complex), {}, "got complex128"),
        (np.zeros((9, 9), "datetime64[s]"), {}, r"floating point, got datetime64\[s\]"),
        (torch.zeros(9, 9, device="meta"), {}, "must be dense .*, got torch.strided on meta"),
        (torch.zeros(9, 9).to_sparse(), {}, "must be dense .*, got torch.sparse_coo on cpu"),
        ("photo.jpg", {}, "several are a list of them, got str; decode bytes with"),
        (iter([Image.new("L", (9, 9))]), {}, "several are a list of them, got list_iterator"),
        (None, {}, "got NoneType"),
        (Image.new("RGBA", (4, 4)), {"do_convert_rgb": False}, "got mode RGBA"),
        (np.zeros((9, 9), np.uint8), {"do_convert_rgb": False}, "three channels, got 1"),
        (
            Image.new("LAB", (4, 4)),
            {},
            "mode LAB are not supported: Lab needs a colour profile; convert to 8-bit RGB first",
        ),
    ],
)
def test_refused(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(image, **options)


def test_three_channels_pass_without_conversion() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for form in (image, Image.fromarray(image), torch.from_numpy(image)):
        np.testing.assert_array_equal(convert(form, do_convert_rgb=False), image)


def test_nested_lists_are_flattened_in_order() -> None:
    first, batch, last = np.zeros((5, 5)), np.ones((2, 5, 5, 3)), Image.new("L", (3, 3))
    flat = flatten_images([first, [batch, [last]]])
    assert len(flat) == 4
    assert flat[0] is first
    assert flat[3] is last


@pytest.mark.parametrize("images", [[], [[], ()], np.zeros((0, 5, 5, 3))])
def test_no_image_is_refused(images: Any) -> None:
    with pytest.raises(ValueError, match="at least one image is needed"):
        flatten_images(images)
