"""The uses in the document on the standalone encoder, as its readers type them.

Where it imports from `model`, they import from `encoder`, `processors` and `pipeline`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoder import Glm4vVisionConfig, Glm4vVisionModel, create_glm4v_vision_encoder
from pipeline import create_complete_glm4v_vision_pipeline
from processors import (
    VideoMetadata,
    create_glm4v_image_processor,
    create_glm4v_video_processor,
)

# The default tower takes 3.6 GB and, where memory is slow to come, 10 s; of its 24 blocks, one is
# enough for all but the document's very words.
ONE_BLOCK: dict[str, Any] = {"depth": 1}
DEFAULT: dict[str, Any] = {}

Pipeline = tuple[Any, Any, Any]


SHAPES = [
    pytest.param(ONE_BLOCK, id="one"),
    pytest.param(DEFAULT, id="all", marks=pytest.mark.whole),
]


@pytest.fixture(scope="module", params=SHAPES)
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    yield create_complete_glm4v_vision_pipeline(**request.param)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    return tmp_path / "image.jpg"


def test_a_picture_through_the_complete_pipeline(pipeline: Pipeline, picture: Path) -> None:
    vision_model, image_processor, _ = pipeline
    image = Image.open(picture)
    inputs = image_processor.preprocess([image], return_tensors="pt")
    with torch.no_grad():
        embeddings = vision_model(inputs["pixel_values"], inputs["image_grid_thw"])
    # 150x200 is resized to 140x196: 10 by 14 patches, of which four make a token.
    assert inputs["image_grid_thw"].tolist() == [[1, 10, 14]]
    assert embeddings.shape == torch.Size([35, 4096])
    assert embeddings.isfinite().all()


def test_random_frames_through_the_complete_pipeline(pipeline: Pipeline) -> None:
    vision_model, _, video_processor = pipeline
    video = torch.randn(16, 3, 224, 224)
    metadata = VideoMetadata(fps=30.0, total_num_frames=16)
    with pytest.warns(UserWarning, match="255") as warned:
        inputs = video_processor.preprocess([video], video_metadata=[metadata], return_tensors="pt")
    assert len(warned) == 1
    with torch.no_grad():
        embeddings = vision_model(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    # Two frames a second of half a second, so one pair.
    assert inputs["video_grid_thw"].tolist() == [[1, 16, 16]]
    assert embeddings.shape == torch.Size([64, 4096])
    assert embeddings.isfinite().all()


def test_metadata_are_taken_by_position_too() -> None:
    assert VideoMetadata(16, 30.0) == VideoMetadata(fps=30.0, total_num_frames=16)


def test_the_default_configuration_is_glm_4_1v() -> None:
    config = Glm4vVisionConfig(
        depth=24,
        hidden_size=1536,
        num_heads=12,
        image_size=336,
        patch_size=14,
        out_hidden_size=4096,
        spatial_merge_size=2,
        temporal_patch_size=1,
        intermediate_size=13696,
    )
    assert Glm4vVisionConfig().to_dict() == config.to_dict() | {"temporal_patch_size": 2}


def test_a_custom_small_configuration() -> None:
    small_config = Glm4vVisionConfig(
        depth=6,
        hidden_size=384,
        num_heads=6,
        out_hidden_size=768,
    )
    small_model = Glm4vVisionModel(small_config)
    image_processor = create_glm4v_image_processor()
    inputs = image_processor.preprocess([Image.new("RGB", (112, 112))], return_tensors="pt")
    with torch.no_grad():
        embeddings = small_model(inputs["pixel_values"], inputs["image_grid_thw"])
    assert embeddings.shape == torch.Size([16, 768])


def test_tokens_are_projected_to_another_models_width(pipeline: Pipeline, picture: Path) -> None:
    vision_encoder, _, _ = pipeline
    image_processor = create_glm4v_image_processor()
    image = Image.open(picture)
    inputs = image_processor.preprocess([image], return_tensors="pt")
    with torch.no_grad():
        vision_embeddings = vision_encoder(inputs["pixel_values"], inputs["image_grid_thw"])
    projection = torch.nn.Linear(4096, 3584)
    vision_embeddings = projection(vision_embeddings)
    assert vision_embeddings.shape == torch.Size([35, 3584])
    assert vision_embeddings.requires_grad


def test_larger_patches_for_a_larger_picture() -> None:
    large_processor = create_glm4v_image_processor(
        patch_size=16,
        merge_size=2,
    )
    large_image = Image.new("RGB", (640, 480)).resize((512, 512))
    inputs = large_processor.preprocess([large_image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert inputs["pixel_values"].shape == (1024, 3 * 2 * 16 * 16)
    encoder = create_glm4v_vision_encoder(**tiny(patch_size=16))
    assert encoder(inputs["pixel_values"], inputs["image_grid_thw"]).shape == (256, 24)


def test_a_frame_a_second_and_four_frames_a_patch() -> None:
    video_processor = create_glm4v_video_processor(
        fps=1.0,
        max_duration=60,
        temporal_patch_size=4,
    )
    video = torch.zeros(240, 3, 28, 28, dtype=torch.uint8)
    metadata = VideoMetadata(fps=24.0, total_num_frames=240)
    inputs = video_processor.preprocess([video], video_metadata=[metadata], return_tensors="pt")
    # A frame a second and the clip's last, which is repeated to a whole patch of four.
    assert video_processor.sample_frames(metadata).tolist() == [*range(0, 240, 24), 239, 239]
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 4]]
    assert inputs["pixel_values_videos"].shape == (48, 3 * 4 * 14 * 14)
    encoder = create_glm4v_vision_encoder(**tiny(temporal_patch_size=4))
    assert encoder(inputs["pixel_values_videos"], inputs["video_grid_thw"]).shape == (12, 24)


@pytest.mark.parametrize("fields", SHAPES)
def test_another_output_width(fields: dict[str, Any]) -> None:
    custom_vision = create_glm4v_vision_encoder(
        out_hidden_size=2048,
        **fields,
    )
    assert custom_vision(torch.zeros(16, 1176), [(1, 4, 4)]).shape == (4, 2048)


def test_the_small_model_of_the_document_needs_another_number_of_heads() -> None:
    with pytest.raises(ValueError, match=r"num_heads=12 .* hidden_size=256 .* \[1, 2, 4, 8, 16,"):
        create_glm4v_vision_encoder(hidden_size=256, depth=2)


def tiny(**sizes: int) -> dict[str, int]:
    shape = {"depth": 1, "hidden_size": 32, "num_heads": 2, "image_size": 64}
    return {**shape, "out_hidden_size": 24, "intermediate_size": 40, **sizes}
