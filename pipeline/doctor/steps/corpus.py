"""Packs to give a tower: stills of the sizes that a web corpus has. No torch until levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from encoder import Glm4vVisionConfig

Grid = tuple[int, int, int]

# Of what people put on the web: mostly 4:3, 3:2 and 16:9, more often wide than high.
_ASPECTS = (4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3, 9 / 16)


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
    """Gradients with noise, uint8 [N, values]: frames of clips apart, stills' once."""
    import torch  # noqa: PLC0415

    frames = config.temporal_patch_size if any(t > 1 for t, _, _ in grids) else 1
    generator = torch.Generator().manual_seed(0)
    shape = (num_patches(grids), config.in_channels * frames * config.patch_size**2)
    noise = torch.randint(0, 64, shape, generator=generator, dtype=torch.uint8)
    return noise + torch.randint(0, 192, (shape[0], 1), generator=generator, dtype=torch.uint8)
