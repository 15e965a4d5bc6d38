from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
from tests.support.processor_files import FLAT, NESTED, PUBLISHED, Write, refusal


def test_what_is_asked_for_goes_before_the_file(folder: Write) -> None:
    place = folder(image=PUBLISHED | {"patch_size": "fourteen"})
    processor = Glm46VImageProcessor.from_pretrained(place, patch_size=16, max_pixels=50_000)
    assert processor.options == ImageOptions(patch_size=16, max_pixels=50_000)
    size = {"shortest_edge": 3136, "longest_edge": 60_000}
    both = Glm46VImageProcessor.from_pretrained(place, patch_size=16, size=size)
    assert both.options == ImageOptions(patch_size=16, min_pixels=3136, max_pixels=60_000)
    line = f"{place}/preprocessor_config.json: patch_size must be an integer of at least 1, "
    assert refusal(Glm46VImageProcessor.from_pretrained, place, patch_size=None) == (
        line + "got 'fourteen'"
    )


def test_an_unknown_override_is_refused_without_blaming_the_file(folder: Write) -> None:
    line = refusal(Glm46VImageProcessor.from_pretrained, folder(image=PUBLISHED), revision="main")
    assert line.startswith("unknown option revision='main'; the options are size, do_resize")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"min_pixels": 3136, "max_pixels": 50_000}, (3136, 50_000)),
        ({"size": None, "max_pixels": 50_000}, (12544, 50_000)),
        ({"min_pixels": None, "max_pixels": None}, (12544, 11_760_000)),
        (
            {"size": {"shortest_edge": 9, "longest_edge": 8000}, "min_pixels": 1, "max_pixels": 2},
            (9, 8000),
        ),
    ],
    ids=str,
)
def test_pixel_limits_count_where_there_is_no_size(
    folder: Write, said: object, expected: tuple[int, int]
) -> None:
    options = GlmgaImageProcessor.from_pretrained(folder(image=said)).options
    assert (options.min_pixels, options.max_pixels) == expected


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"size": {"min_pixels": 3, "max_pixels": 9}}, "size needs 'shortest_edge' and 'longest_"),
        ({"size": {"shortest_edge": 224}}, "size needs 'shortest_edge' and 'longest_edge'"),
        ({"size": 224}, "size needs 'shortest_edge' and 'longest_edge'"),
        # Of a later processor, in whose place it would be without effect and without a word.
        ({"max_image_tokens": 8000}, "unknown option max_image_tokens=8000; the options are size"),
        ({"resample": 1}, "resample=LANCZOS is not among torch's NEAREST, BILINEAR, BICUBIC; use"),
        ({"do_resize": "yes"}, "do_resize must be True or False, got 'yes'"),
    ],
    ids=str,
)
def test_what_a_file_cannot_say_is_refused_by_name(
    folder: Write, said: object, problem: str
) -> None:
    place = folder(image=said)
    line = refusal(GlmgaImageProcessor.from_pretrained, place)
    assert line.startswith(f"{place}/preprocessor_config.json: {problem}")


def test_a_rate_that_cannot_be_is_refused_with_the_file(folder: Write) -> None:
    place = folder(video={"fps": 0})
    line = f"{place}/video_preprocessor_config.json: fps must be a positive number, got 0"
    assert refusal(GlmgaVideoProcessor.from_pretrained, place) == line


WITHOUT_EFFECT = {
    "auto_map": {"AutoImageProcessor": "processing.Other"},
    "transformers_version": "5.23.0",
    "image_seq_length": 9,
    "feature_extractor_type": "Other",
    "_valid_processor_keys": ["images"],
    "unheard_of": None,
    "data_format": "channels_last",
    "default_to_square": True,
    "disable_grouping": True,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_pad": True,
    "pad_size": {"height": 224, "width": 224},
    "max_image_size": {"longest_edge": 9},
    "num_frames": 16,
    "size_divisor": 32,
}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (GlmgaImageProcessor, {"fps": 4, "do_sample_frames": False, "max_duration": 9}),
        (Glm46VImageProcessor, {"patch_expand_factor": 2}),
        (Glm4vImageProcessor, {"patch_expand_factor": 2}),
        (GlmgaVideoProcessor, {"max_duration": 300}),
        (Glm46VVideoProcessor, {"fps": 2, "max_duration": 300, "max_frames": 9}),
        (Glm4vVideoProcessor, {"max_frames": 9, "patch_expand_factor": 2}),
    ],
)
def test_what_has_no_effect_upstream_is_passed_over(folder: Write, kind: Any, more: Any) -> None:
    content = WITHOUT_EFFECT | more
    place = folder(image=content, video=content)
    assert kind.from_pretrained(place).options == kind().options


@pytest.mark.parametrize(
    "said",
    [
        WITHOUT_EFFECT | {"min_pixels": 1, "max_pixels": 9, "fps": 4, "do_sample_frames": False},
        {"do_resize": None},
        {"do_rescale": None},
        {"do_normalize": None},
    ],
    ids=["nothing", "do_resize", "do_rescale", "do_normalize"],
)
def test_the_reference_reads_it_likewise(folder: Write, said: dict[str, Any]) -> None:
    from transformers.models.glmga.image_processing_pil_glmga import GlmgaImageProcessorPil as Kind

    size = {"shortest_edge": 60_000, "longest_edge": 90_000}
    place = folder(image=said | {"size": size})
    image = np.random.default_rng(0).integers(0, 256, (84, 56, 3), dtype=np.uint8)
    theirs = Kind.from_pretrained(place)(image, return_tensors="np")
    features = GlmgaImageProcessorPil.from_pretrained(place)(image)
    np.testing.assert_array_equal(features.image_grid_thw, theirs["image_grid_thw"])
    np.testing.assert_allclose(features.pixel_values, theirs["pixel_values"], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no JSON: Expecting value"),
        ("{", "is no JSON: Expecting property name"),
        ("[]", "holds no JSON object, got []"),
        ('"text"', "holds no JSON object, got 'text'"),
    ],
)
def test_a_damaged_file_is_refused_by_name(folder: Write, text: str, problem: str) -> None:
    place = folder()
    for name in (NESTED, FLAT["image"]):
        (place / name).write_text(text)
        line = refusal(GlmgaImageProcessor.from_pretrained, place)
        assert line.startswith(f"{place}/{name} {problem}")
        (place / name).unlink()
    (place / NESTED).write_text('{"image_processor": 3}')
    line = f"{place}/processor_config.json: image_processor is no object, got 3"
    assert refusal(GlmgaImageProcessor.from_pretrained, place) == line
