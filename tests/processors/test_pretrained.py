from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from itertools import permutations
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
from tests.support.processor_files import FLAT, PUBLISHED, Write, refusal

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
