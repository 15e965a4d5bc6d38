"""Real photos and pictures that hardly change, in float32 and in bfloat16."""

from __future__ import annotations

import pytest
import torch

from encoder import Glm4vVisionConfig, Glm4vVisionModel, load_encoder
from tests.parity.pictures import KINDS, cut_picture
from tests.parity.reference import (
    normalize,
    pooled_cosine,
    repeat_frames,
    run_both,
    worst_error,
)
from tests.support.towers import cast_model, random_model

# Patch, temporal, merge and head size.
VARIANTS = [(14, 2, 2, 80), (16, 1, 3, 4), (16, 4, 2, 20), (14, 2, 1, 64), (14, 2, 2, 128)]
PRESETS = ["tiny", "small"]


@pytest.fixture(scope="module", params=[*PRESETS, *VARIANTS], ids=str)
def model(request: pytest.FixtureRequest) -> Glm4vVisionModel:
    if request.param in PRESETS:
        return load_encoder(request.param)
    patch_size, temporal_patch_size, merge_size, head_dim = request.param
    config = Glm4vVisionConfig(
        depth=3,
        hidden_size=2 * head_dim if head_dim > 4 else 64,
        num_heads=2 if head_dim > 4 else 16,
        image_size=112,
        patch_size=patch_size,
        temporal_patch_size=temporal_patch_size,
        spatial_merge_size=merge_size,
        out_hidden_size=96,
        intermediate_size=128,
        attention_bias=True,
    )
    return random_model(config)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_all_kinds(model: Glm4vVisionModel, kind: str) -> None:
    levels, grid = cut_picture(kind, model.config)
    pixels = normalize(repeat_frames(levels, model.config.temporal_patch_size))
    _, truth = run_both(model, pixels, [grid])
    assert worst_error(model.forward_features(levels, [grid]), truth) < 3e-6
    half = cast_model(model, torch.bfloat16)
    for given in (levels, pixels.float()):
        pooled = half(given, [grid])
        assert pooled.dtype == torch.bfloat16
        assert pooled_cosine(pooled, truth[1]) > 0.9995
