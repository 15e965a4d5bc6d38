"""Towers side by side: packs to give them, and transformers' model with our weights."""

from __future__ import annotations

import torch
from transformers.models.glm4v import Glm4vVisionModel as PeerModel

from encoder import Glm4vVisionConfig, Glm4vVisionModel
from pipeline.doctor.steps.corpus import Grid, make_levels, num_patches, web_grids
from tests.parity.reference import make_reference

__all__ = ["Grid", "make_levels", "make_peer", "num_patches", "pixels_of", "web_grids"]

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1)


def pixels_of(levels: torch.Tensor, config: Glm4vVisionConfig) -> torch.Tensor:
    """As transformers' processors hand them on: normalised, float32, every frame."""
    frame = levels.float().view(len(levels), 3, -1) / 255
    pixels = ((frame - _MEAN) / _STD).view(len(levels), 3, -1, config.patch_size**2)
    return pixels.expand(-1, -1, config.temporal_patch_size, -1).flatten(1)


def make_peer(model: Glm4vVisionModel, dtype: torch.dtype) -> PeerModel:
    """transformers' model in one dtype, beside ours; where dtypes are equal, weights are shared."""
    peer = make_reference(model)
    for parameter in peer.parameters():
        parameter.data = parameter.data.to(dtype)
    # Its frequencies, which stay float32, are no parameters.
    peer.rotary_pos_emb.to(model.patch_embed.proj.weight.device)
    return peer
