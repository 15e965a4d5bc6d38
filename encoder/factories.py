"""Vision towers by the name that the standalone GLM-4V encoder's documentation gives them."""

from dataclasses import fields
from typing import Any

import torch

from encoder.config import Glm4vVisionConfig
from encoder.load import random_encoder
from encoder.model import Glm4vVisionModel


def create_glm4v_vision_encoder(
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> Glm4vVisionModel:
    """Makes a tower with random weights, in eval mode and without gradients.

    Names and shapes are those of transformers' `Glm4vVisionModel`; for a checkpoint's weights
    there is `load_encoder`.

    >>> create_glm4v_vision_encoder(depth=1, hidden_size=32, num_heads=2, out_hidden_size=8,
    ...                             intermediate_size=16).config.head_dim
    16

    Args:
        device: Where the weights go.
        dtype: Of the matrix products: float32, bfloat16 or float16.
        seed: Of the weights, as of a preset's.
        **config: Fields of `Glm4vVisionConfig`; the others are GLM-4.1V's, 892 M parameters.

    Raises:
        ValueError: An unknown field, a value out of range, or another dtype or seed.
    """
    names = [field.name for field in fields(Glm4vVisionConfig)]
    for name, value in config.items():
        if name not in names:
            raise ValueError(f"unknown field {name}={value!r}; the fields are {', '.join(names)}")
    return random_encoder(Glm4vVisionConfig(**config), device=device, dtype=dtype, seed=seed)
