"""Pictures of all kinds that embeddings are to be right for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from encoder import Glm4vVisionConfig
from processors import GlmgaImageProcessor

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
KINDS = (*PHOTOS, "flat", "black", "faint photo", "faint noise", "noise")


def make_picture(kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture, uint8 [H, W, 3]: a photo, one colour, a few levels around one, or noise."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    colour = np.array([131, 90, 203], np.uint8)
    if kind in PHOTOS:
        return _read_photo(kind)
    return {
        "flat": lambda: np.broadcast_to(colour, noise.shape).copy(),
        "black": lambda: np.zeros_like(noise),
        "faint photo": lambda: colour + _read_photo(PHOTOS[0]) // 32,
        "faint noise": lambda: colour + noise % 3,
        "noise": lambda: noise,
    }[kind]()


def _read_photo(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
        return np.asarray(photo.convert("RGB"))


def cut_picture(
    kind: str, config: Glm4vVisionConfig, max_pixels: int = 25_088
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Cuts a picture as our processor does for a tower.

    Args:
        kind: One of `KINDS`.
        config: The tower's.
        max_pixels: Of the picture after resizing.

    Returns:
        uint8 patches, the frame once, and the grid.
    """
    frames = config.temporal_patch_size
    processor = GlmgaImageProcessor(
        patch_size=config.patch_size,
        temporal_patch_size=frames,
        merge_size=config.spatial_merge_size,
        max_pixels=max_pixels * frames,
    )
    levels, grid = processor.patches(make_picture(kind))
    return torch.from_numpy(levels), grid
