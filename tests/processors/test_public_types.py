import inspect
import io
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from processors import (
    DEFAULT_MAX_PIXELS,
    DecodedImage,
    ImageFormat,
    VideoFamily,
    VideoSampling,
    decode_image,
)


@pytest.mark.parametrize("kind", get_args(ImageFormat))
def test_every_format_that_is_named_is_decoded(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "white").save(file, kind)
    image = decode_image(file.getvalue())
    assert type(image) is DecodedImage
    assert (image.format, image.height, image.width) == (kind, 2, 3)
    assert np.array_equal(image.pixels, np.full((2, 3, 3), 255, np.uint8))


def test_the_limit_on_pixels_is_pillows() -> None:
    limit = inspect.signature(decode_image).parameters["max_pixels"].default
    assert limit == DEFAULT_MAX_PIXELS == Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("family", get_args(VideoFamily))
def test_every_family_that_is_named_samples(family: VideoFamily) -> None:
    assert VideoSampling(family=family).most_frames >= 600
