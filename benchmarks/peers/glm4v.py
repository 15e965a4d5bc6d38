"""What every peer runs: transformers' own processor and vision tower, at patchflow's sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torchvision_shim  # noqa: F401 (before transformers, which takes torchvision where it can)
from command import DIMENSION
from PIL import Image
from safetensors.torch import load_file
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel
from transformers.models.glmga.image_processing_glmga import GlmgaImageProcessor

MAX_PIXELS = 224 * 224
MERGED_PATCHES = 4
TINY = {
    "depth": 1,
    "hidden_size": 128,
    "num_heads": 4,
    "out_hidden_size": DIMENSION,
    "intermediate_size": 1856,
}


class Processor:
    """JPEGs to patches, at the 224x224 budget."""

    def __init__(self) -> None:
        # Pixels are counted over the two frames that a still is repeated to.
        size = {"shortest_edge": 112 * 112, "longest_edge": 2 * MAX_PIXELS}
        self._processor = GlmgaImageProcessor(size=size)

    def __call__(self, blobs: Sequence[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 `[patches, 1176]`, and `[images, 3]` grids."""
        return self.of_pixels([decode(blob) for blob in blobs])

    def of_pixels(self, images: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of uint8 `[height, width, 3]` arrays."""
        planes = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images]
        out = self._processor(planes, return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]


def decode(blob: bytes) -> np.ndarray:
    """uint8 `[height, width, 3]`."""
    return np.array(Image.open(io.BytesIO(blob)).convert("RGB"))


class Encoder:
    """The tiny tower, with the weights of a file, and the mean of each item's tokens."""

    def __init__(self, weights: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = Glm4vVisionModel(Glm4vVisionConfig(**TINY))
        self._model.load_state_dict(load_file(weights))
        self._model.eval()

    def __call__(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> np.ndarray:
        """float32 `[images, 256]`."""
        with torch.inference_mode():
            tokens = self._model(pixel_values, grid_thw).pooler_output
            sizes = (grid_thw.prod(1) // MERGED_PATCHES).tolist()
            return np.stack([item.mean(0).numpy() for item in tokens.split(sizes)])

    def of_clip(self, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> np.ndarray:
        """float32 `[256]` of one clip, whose frames attend to themselves, as upstream has it."""
        frames, height, width = grid_thw.tolist()
        grids = torch.tensor([[1, height, width]] * frames)
        with torch.inference_mode():
            return self._model(pixel_values, grids).pooler_output.mean(0).numpy()
