"""The vision tower in plain float64, to hold the referee against.

Written for clarity and not for speed: no float32 but for the rotary frequencies, which are float32
by definition, and attention over the whole pack with a mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from encoder import Glm4vVisionConfig, Glm4vVisionModel
from tests.parity.reference import Grids, Outputs

Weights = dict[str, torch.Tensor]


def run_plain(model: Glm4vVisionModel, pixels: torch.Tensor, grids: Grids) -> Outputs:
    """Returns `last_hidden_state` and `pooler_output` in float64."""
    config, merge = model.config, model.config.spatial_merge_size
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    segments = [(h, w) for t, h, w in grids for _ in range(t)]
    places = torch.cat([_places(h, w, merge) for h, w in segments])
    lengths = torch.tensor([h * w for h, w in segments])
    segment = torch.repeat_interleave(torch.arange(len(segments)), lengths)

    flat = weights["patch_embed.proj.weight"].flatten(1)
    x = F.linear(pixels, flat, weights["patch_embed.proj.bias"])
    x = _norm(x, weights["post_conv_layernorm.weight"], config)
    shapes = torch.tensor(segments)[segment]
    x = x + _sample(weights["embeddings.position_embedding.weight"], (places + 0.5) / shapes)
    exponents = torch.arange(config.head_dim // 4, dtype=torch.float32) * 4 / config.head_dim
    frequencies = (1 / config.rope_theta**exponents).double()
    angles = (places[:, :, None] * frequencies).flatten(1).repeat(1, 2)
    visible = segment[:, None] == segment
    for index in range(config.depth):
        x = _block(x, angles, visible, _part(weights, f"blocks.{index}."), config)
    x = _norm(x, weights["post_layernorm.weight"], config)

    squares = x.view(-1, merge, merge, x.shape[-1]).permute(0, 3, 1, 2)
    hidden = F.conv2d(squares, weights["downsample.weight"], weights["downsample.bias"]).flatten(1)
    merger = _part(weights, "merger.")
    scale = (merger["post_projection_norm.weight"], merger["post_projection_norm.bias"])
    normed = F.layer_norm(hidden @ merger["proj.weight"].T, hidden.shape[-1:], *scale)
    return hidden, _gated(F.gelu(normed), merger)


def _places(height: int, width: int, merge: int) -> torch.Tensor:
    """Row and column of each patch, block after block: float64 [height * width, 2]."""
    places = [
        (row + i, column + j)
        for row in range(0, height, merge)
        for column in range(0, width, merge)
        for i in range(merge)
        for j in range(merge)
    ]
    return torch.tensor(places, dtype=torch.float64)


def _sample(table: torch.Tensor, spots: torch.Tensor) -> torch.Tensor:
    """Reads the learned positions at shares of height and width, in 0..1."""
    side = round(len(table) ** 0.5)
    picture = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = (spots * 2 - 1).flip(-1)[None, None]
    sampled = F.grid_sample(
        picture, grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return sampled[0, :, 0].T


def _block(
    x: torch.Tensor,
    angles: torch.Tensor,
    visible: torch.Tensor,
    weights: Weights,
    config: Glm4vVisionConfig,
) -> torch.Tensor:
    normed = _norm(x, weights["norm1.weight"], config)
    qkv = F.linear(normed, weights["attn.qkv.weight"], weights.get("attn.qkv.bias"))
    query, key, value = qkv.view(len(x), 3, config.num_heads, -1).permute(1, 2, 0, 3)
    scores = _turn(query, angles) @ _turn(key, angles).mT * config.head_dim**-0.5
    shares = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    x = x + (shares @ value).transpose(0, 1).flatten(1) @ weights["attn.proj.weight"].T
    normed = _norm(x, weights["norm2.weight"], config)
    return x + _gated(normed, _part(weights, "mlp."))


def _norm(x: torch.Tensor, weight: torch.Tensor, config: Glm4vVisionConfig) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, config.rms_norm_eps)


def _turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def _gated(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    gate, up, down = (weights[f"{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _part(weights: Weights, prefix: str) -> Weights:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
