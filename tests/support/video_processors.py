"""The video processors as their tests use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from processors import (
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    GlmgaVideoProcessor,
)

PROCESSORS = {
    "glmga": GlmgaVideoProcessor,
    "glm46v": Glm46VVideoProcessor,
    "glm4v": Glm4vVideoProcessor,
}
ALL = pytest.mark.parametrize("kind", list(PROCESSORS.values()))
LEVELS: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(**options: Any) -> GlmgaVideoProcessor:
    return GlmgaVideoProcessor(**{"do_sample_frames": False} | options)


def streamed(processor: Any, frames: Any) -> tuple[np.ndarray, tuple[int, int, int]]:
    patcher = processor.patcher(len(frames), *frames[0].shape[:2])
    for frame in frames:
        patcher.add(frame)
    return patcher.finish()
