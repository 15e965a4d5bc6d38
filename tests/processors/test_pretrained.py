from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
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
    load_processors,
)

IMAGE = {
    "Glmga": GlmgaImageProcessor,
    "Glm46V": Glm46VImageProcessor,
    "Glm4v": Glm4vImageProcessor,
}
VIDEO = {
    "Glmga": GlmgaVideoProcessor,
    "Glm46V": Glm46VVideoProcessor,
    "Glm4v": Glm4vVideoProcessor,
}
NESTED = "processor_config.json"
FLAT = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}

# As GLM-4.6V and its kin are published: no switches, no filter, the class of their processor.
PUBLISHED = {
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    "do_rescale": True,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Glm46VImageProcessor",
    "processor_class": "Glm46VProcessor",
}
# As transformers 4 wrote GLM-4.1V's anew after training.
SAVED_BY_4 = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": None,
    "do_rescale": True,
    "do_resize": True,
    "do_sample_frames": True,
    "fps": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "input_data_format": None,
    "max_image_size": {"longest_edge": 47040000},
    "merge_size": 2,
    "num_frames": 16,
    "patch_size": 14,
    "processor_class": "Glm4vProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 47040000, "shortest_edge": 12544},
    "size_divisor": None,
    "temporal_patch_size": 2,
    "video_metadata": None,
    "video_processor_type": "Glm4vVideoProcessor",
}
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """A folder with what is given as the nested file and the flat ones."""

    def write(*, nested: object = None, image: object = None, video: object = None) -> Path:
        for name, content in ((NESTED, nested), (FLAT["image"], image), (FLAT["video"], video)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what is published --------------------------------------------------------------------------


def test_what_transformers_saves_is_what_it_loads(folder: Write) -> None:
    from transformers.models.glmga.image_processing_pil_glmga import GlmgaImageProcessorPil as Kind

    size = {"shortest_edge": 3136, "longest_edge": 100_000}
    place = folder()
    Kind(size=size, resample=2, image_mean=[0.5, 0.4, 0.3], merge_size=1).save_pretrained(place)
    ours = GlmgaImageProcessorPil.from_pretrained(place)
    expected = {"size": size, "resample": 2, "image_mean": [0.5, 0.4, 0.3], "merge_size": 1}
    assert ours.options == GlmgaImageProcessorPil(**expected).options
    assert GlmgaImageProcessor.from_pretrained(str(place)).options == ours.options
    image = np.random.default_rng(0).integers(0, 256, (200, 301, 3), dtype=np.uint8)
    theirs = Kind.from_pretrained(place)(image, return_tensors="np")
    features = ours(image)
    np.testing.assert_array_equal(features.image_grid_thw, theirs["image_grid_thw"])
    np.testing.assert_allclose(features.pixel_values, theirs["pixel_values"], atol=1e-6)


def test_a_published_file(folder: Write) -> None:
    processor = Glm46VImageProcessor.from_pretrained(folder(image=PUBLISHED))
    assert type(processor) is Glm46VImageProcessor
    assert processor.options == ImageOptions(max_pixels=9_633_792)


def test_a_file_that_was_saved_again(folder: Write) -> None:
    processor = Glm4vVideoProcessor.from_pretrained(folder(video=SAVED_BY_4))
    assert type(processor) is Glm4vVideoProcessor
    assert processor.options == Glm4vVideoProcessor(fps=2).options


def test_a_nested_file_goes_first(folder: Write) -> None:
    """As GLM-5.3-Flash has it."""
    size = {"shortest_edge": 12544, "longest_edge": 9633792}
    described = {"image_processor_type": "GlmgaImageProcessor", "patch_expand_factor": 2}
    video = {"video_processor_type": "GlmgaVideoProcessor", "patch_expand_factor": 2, "fps": 1}
    nested = {
        "processor_class": "Glm46VProcessor",
        "image_processor": described | {"size": size},
        "video_processor": video,
    }
    place = folder(
        nested=nested,
        image={"image_processor_type": "Qwen2VLImageProcessor"},
        video={"video_processor_type": "Qwen2VLVideoProcessor"},
    )
    expected = ImageOptions(max_pixels=9_633_792, patch_expand_factor=2)
    for kind in (GlmgaImageProcessor, GlmgaImageProcessorPil):
        assert kind.from_pretrained(place).options == expected
    clips = GlmgaVideoProcessor.from_pretrained(place)
    assert clips.options == GlmgaVideoProcessor(fps=1, patch_expand_factor=2).options


@pytest.mark.parametrize(
    "nested", [{"processor_class": "Glm4vProcessor"}, {"image_processor": None}]
)
def test_what_the_nested_file_lacks_the_flat_one_holds(folder: Write, nested: object) -> None:
    place = folder(nested=nested, image=PUBLISHED)
    assert Glm46VImageProcessor.from_pretrained(place).options.max_pixels == 9_633_792


# --- whose it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
@pytest.mark.parametrize("name", IMAGE)
def test_suffixes_resolve(folder: Write, name: str, suffix: str) -> None:
    place = folder(
        image={"image_processor_type": f"{name}ImageProcessor{suffix}", "patch_size": 16},
        video={"video_processor_type": f"{name}VideoProcessor{suffix}", "patch_size": 16},
    )
    assert IMAGE[name].from_pretrained(place).options == IMAGE[name](patch_size=16).options
    assert VIDEO[name].from_pretrained(place).options == VIDEO[name](patch_size=16).options
    if name == "Glmga":
        assert GlmgaImageProcessorPil.from_pretrained(place).options == ImageOptions(patch_size=16)
    both = load_processors(place)
    assert [type(one) for one in both] == [IMAGE[name], VIDEO[name]]


@pytest.mark.parametrize(("name", "asked"), [*permutations(IMAGE, 2)])
def test_another_class_of_the_family_is_refused_with_the_class_to_use(
    folder: Write, name: str, asked: str
) -> None:
    place = folder(
        image={"image_processor_type": f"{name}ImageProcessorFast"},
        video={"video_processor_type": f"{name}VideoProcessor"},
    )
    assert refusal(IMAGE[asked].from_pretrained, place) == (
        f"{place}/preprocessor_config.json: image_processor_type is {name}ImageProcessorFast; "
        f"use {name}ImageProcessor"
    )
    assert refusal(VIDEO[asked].from_pretrained, place) == (
        f"{place}/video_preprocessor_config.json: video_processor_type is {name}VideoProcessor; "
        f"use {name}VideoProcessor"
    )


@pytest.mark.parametrize("name", ["Qwen2VLImageProcessorFast", "GlmgaVideoProcessor", "Glm5", 3])
def test_other_architectures_are_refused_by_name(folder: Write, name: object) -> None:
    place = folder(nested={"image_processor": {"image_processor_type": name}})
    for load in (GlmgaImageProcessor.from_pretrained, load_processors):
        assert refusal(load, place) == (
            f"{place}/processor_config.json: {name} is no image processor of Glmga, Glm46V, Glm4v"
        )


@pytest.mark.parametrize("kind", [*IMAGE.values(), *VIDEO.values(), GlmgaImageProcessorPil])
def test_without_a_type_the_class_that_is_asked_counts(folder: Write, kind: Any) -> None:
    content = {"merge_size": 1}
    place = folder(image=content, video=content)
    processor = kind.from_pretrained(place)
    assert type(processor) is kind
    assert processor.options == kind(merge_size=1).options


# --- what is not there --------------------------------------------------------------------------


def test_a_folder_without_processors_says_what_was_looked_for(folder: Write) -> None:
    place = folder(nested={"processor_class": "Glm4vProcessor"})
    for load in (Glm4vImageProcessor.from_pretrained, load_processors):
        assert refusal(load, place) == (
            f"{place} describes no image processor: it has no preprocessor_config.json, "
            "and no image_processor in a processor_config.json"
        )
    assert refusal(Glm4vVideoProcessor.from_pretrained, place) == (
        f"{place} describes no video processor: it has no video_preprocessor_config.json, "
        "and no video_processor in a processor_config.json"
    )


@pytest.mark.parametrize(
    "load",
    [Glm4vImageProcessor.from_pretrained, Glm4vVideoProcessor.from_pretrained, load_processors],
)
def test_a_folder_that_is_not_there_is_refused(load: Callable[..., object]) -> None:
    line = "no folder 'zai-org/GLM-4.5V'; download the checkpoint, or correct the path"
    assert refusal(load, "zai-org/GLM-4.5V") == line


@pytest.mark.parametrize(
    "load",
    [Glm4vImageProcessor.from_pretrained, Glm4vVideoProcessor.from_pretrained, load_processors],
)
def test_a_url_is_told_what_reads_it(load: Callable[..., object]) -> None:
    assert refusal(load, "s3://media/x") == (
        "'s3://media/x' is no folder on this machine, which is what is read here; "
        "pipeline.create_complete_glm4v_vision_pipeline reads URLs"
    )


def test_without_a_video_file_the_defaults_count_and_it_is_said_to_the_caller(
    folder: Write,
) -> None:
    """Upstream's class would take the images' budget, 9.6 M pixels for all frames of a clip."""
    place = folder(image=PUBLISHED)
    loads: list[Callable[[], Any]] = [
        lambda: Glm46VVideoProcessor.from_pretrained(place, merge_size=1),
        lambda: load_processors(place, merge_size=1)[1],
    ]
    for load in loads:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            processor = load()
        assert type(processor) is Glm46VVideoProcessor
        assert processor.options == Glm46VVideoProcessor(merge_size=1).options
        assert processor.options.max_pixels == 47_040_000
        assert [(item.category, item.filename, str(item.message)) for item in caught] == [
            (
                UserWarning,
                __file__,
                f"{place} describes no video processor: Glm46VVideoProcessor's defaults are used, "
                "not the image processor's options, which transformers would take",
            )
        ]


def test_without_a_video_file_another_family_is_refused(folder: Write) -> None:
    place = folder(image=PUBLISHED)
    assert refusal(Glm4vVideoProcessor.from_pretrained, place) == (
        f"{place}/preprocessor_config.json: image_processor_type is Glm46VImageProcessor; "
        "use Glm46VVideoProcessor"
    )


# --- options ------------------------------------------------------------------------------------


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


# --- both at once -------------------------------------------------------------------------------


def test_both_are_read_by_whatever_reads() -> None:
    """Each of the class that its own type names, and with the model's sizes."""
    image = {"image_processor_type": "Glm4vImageProcessor", "patch_size": 14, "max_pixels": 40_000}
    video = {"video_processor_type": "Glm46VVideoProcessor", "merge_size": 3, "max_pixels": 50_000}
    files = {FLAT["image"]: json.dumps(image).encode(), FLAT["video"]: json.dumps(video).encode()}
    sizes = {"patch_size": 16, "temporal_patch_size": 1, "merge_size": 1}
    images, clips = load_processors("s3://models/small", read=files.get, **sizes)
    assert [type(images), type(clips)] == [Glm4vImageProcessor, Glm46VVideoProcessor]
    assert images.options == Glm4vImageProcessor(max_pixels=40_000, **sizes).options
    assert clips.options == Glm46VVideoProcessor(max_pixels=50_000, **sizes).options
    files[FLAT["video"]] = b"{"
    line = refusal(load_processors, "s3://models/small", read=files.get)
    assert line.startswith("s3://models/small/video_preprocessor_config.json is no JSON: ")


@pytest.mark.parametrize(
    ("image", "video", "kinds"),
    [
        ({}, {}, [GlmgaImageProcessor, GlmgaVideoProcessor]),
        (
            {"image_processor_type": "Glm4vImageProcessor"},
            {},
            [Glm4vImageProcessor, Glm4vVideoProcessor],
        ),
        (
            {},
            {"video_processor_type": "Glm46VVideoProcessor"},
            [Glm46VImageProcessor, Glm46VVideoProcessor],
        ),
    ],
)
def test_a_file_without_a_type_goes_by_the_other(
    folder: Write, image: object, video: object, kinds: list[type]
) -> None:
    both = load_processors(folder(image=image, video=video))
    assert [type(one) for one in both] == kinds
