"""Towers side by side: packs to give them, and transformers' model with our weights."""

from __future__ import annotations

import numpy as np
import torch
from transformers.models.glm4v import Glm4vVisionModel as PeerModel

from encoder import Glm4vVisionConfig, Glm4vVisionModel
from tests.parity.reference import make_reference

Grid = tuple[int, int, int]

# Of what people put on the web: mostly 4:3, 3:2 and 16:9, more often wide than high.
_ASPECTS = (4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3, 9 / 16)
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1)


def web_grids(patches: int, *, median: int, merge: int, most: int) -> list[Grid]:
    """Stills of sizes as a web corpus has them: spread evenly in the logarithm, by a factor of e.

    Args:
        patches: About how many in all.
        median: Patches of the still in the middle.
        merge: Side of a merge block, in patches.
        most: Patches of the largest still.
    """
    generator = np.random.default_rng(0)
    grids: list[Grid] = []
    left = patches
    while left > 0:
        area = min(most, left, median * float(np.exp(generator.normal(0, 1))))
        height = (area / generator.choice(_ASPECTS)) ** 0.5
        sides = [max(1, int(side / merge)) * merge for side in (height, area / height)]
        grids.append((1, sides[0], sides[1]))
        left -= sides[0] * sides[1]
    # As packs are sorted.
    return sorted(grids, key=lambda grid: grid[1] * grid[2], reverse=True)


def num_patches(grids: list[Grid]) -> int:
    """Patches in all."""
    return sum(t * h * w for t, h, w in grids)


def make_levels(config: Glm4vVisionConfig, grids: list[Grid]) -> torch.Tensor:
    """Gradients with noise, uint8: frames of clips apart, stills' once."""
    frames = config.temporal_patch_size if any(t > 1 for t, _, _ in grids) else 1
    generator = torch.Generator().manual_seed(0)
    shape = (num_patches(grids), config.in_channels * frames * config.patch_size**2)
    noise = torch.randint(0, 64, shape, generator=generator, dtype=torch.uint8)
    return noise + torch.randint(0, 192, (shape[0], 1), generator=generator, dtype=torch.uint8)


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
