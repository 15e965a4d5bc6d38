"""Towers to compare with."""

from __future__ import annotations

import torch

from encoder import Glm4vVisionConfig, Glm4vVisionModel

# Two blocks of two heads, and a position table of 4 by 4.
SMALL = Glm4vVisionConfig(
    depth=2,
    hidden_size=32,
    num_heads=2,
    image_size=56,
    out_hidden_size=24,
    intermediate_size=40,
    attention_bias=True,
)


def random_model(config: Glm4vVisionConfig, seed: int = 0) -> Glm4vVisionModel:
    """A model none of whose weights is trivial, biases and norms included."""
    torch.manual_seed(seed)
    model = Glm4vVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def cast_model(model: Glm4vVisionModel, dtype: torch.dtype) -> Glm4vVisionModel:
    """The same weights as `load_encoder` would hold them for another dtype."""
    cast = Glm4vVisionModel(model.config, device="meta", dtype=dtype)
    targets = dict(cast.named_parameters())
    state = {name: tensor.to(targets[name].dtype) for name, tensor in model.state_dict().items()}
    cast.load_state_dict(state, assign=True)
    return cast.eval().requires_grad_(False)
