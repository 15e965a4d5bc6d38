"""From a photo to its tokens: our processor and tower against transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.glmga.image_processing_pil_glmga import (
    GlmgaImageProcessorPil as ReferenceProcessor,
)

from encoder import Glm4vVisionConfig
from processors import GlmgaImageProcessorPil
from tests.parity.pictures import KINDS, make_picture
from tests.parity.reference import make_reference, run_reference, worst_error
from tests.support.towers import random_model


@pytest.mark.parametrize(
    ("patch_size", "temporal_patch_size", "merge_size"), [(14, 2, 2), (16, 4, 3), (14, 1, 1)]
)
def test_photos_to_tokens(patch_size: int, temporal_patch_size: int, merge_size: int) -> None:
    config = Glm4vVisionConfig(
        depth=2,
        hidden_size=32,
        num_heads=2,
        image_size=112,
        patch_size=patch_size,
        temporal_patch_size=temporal_patch_size,
        spatial_merge_size=merge_size,
        out_hidden_size=24,
        intermediate_size=40,
        attention_bias=True,
    )
    options: dict[str, Any] = {
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "merge_size": merge_size,
        "size": {"shortest_edge": 3136, "longest_edge": 60_000 * temporal_patch_size},
    }
    images = [Image.fromarray(make_picture(kind)) for kind in KINDS]
    given = ReferenceProcessor(**options)(images, return_tensors="pt")
    grids = [tuple(grid) for grid in given["image_grid_thw"].tolist()]
    model = random_model(config)
    reference = make_reference(model).double()
    truth = run_reference(reference, given["pixel_values"].double(), grids)

    processor = GlmgaImageProcessorPil(**options)
    features = processor(images, return_tensors="pt")
    ours = model.forward_features(features.pixel_values, features.image_grid_thw)
    assert worst_error(ours, truth) < 1e-5
    # The way a job takes: levels, and each still's frame once.
    cut = [processor.patches(make_picture(kind)) for kind in KINDS]
    levels = torch.cat([torch.from_numpy(patches) for patches, _ in cut])
    assert worst_error(model.forward_features(levels, [grid for _, grid in cut]), truth) < 1e-5
