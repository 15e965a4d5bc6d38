"""What a tower costs, counted from its shapes: operations and bytes. Pure arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from encoder.config import Glm4vVisionConfig
from encoder.grids import read_grids

if TYPE_CHECKING:
    import torch

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Parts whose weights stay in float32 whatever the dtype: see `Glm4vVisionModel`.
_FLOAT32_PARTS = ("embeddings", "patch_embed")


def forward_flop(config: Glm4vVisionConfig, grid_thw: Iterable[Sequence[int]]) -> int:
    """Counts the floating-point operations of a forward pass; a multiply-add is two.

    Those of the matrix products: patch embedding (of float patches, all frames), blocks, with
    attention within each segment, downsampling and merger. Left out is what goes value by value
    (norms, activations, softmax, rotary embedding), and the interpolation of positions: two small
    products for each size of grid, 0.05 GFLOP in the example.

    >>> forward_flop(Glm4vVisionConfig(), [(1, 16, 16)]) // 10**9  # a still of 224x224
    385

    Args:
        config: The tower's shape.
        grid_thw: `(t, h, w)` an item, in patches before merging.

    Raises:
        ValueError: A row is not three positive integers, or its sides are no multiples of
            `spatial_merge_size`.
    """
    dim, out = config.hidden_size, config.out_hidden_size
    block = config.spatial_merge_size**2
    # Queries, keys, values and projection; then the three matrices of the MLP.
    a_patch = config.patch_dim * dim + config.depth * (4 * dim**2 + 3 * dim * out)
    a_token = block * dim * out + out**2 + 3 * out * config.intermediate_size
    multiply_adds = 0
    for t, h, w in read_grids(grid_thw, config.spatial_merge_size):
        patches = h * w
        # Every patch meets every other twice: as a key, and as a value.
        attention = config.depth * 2 * patches**2 * dim
        multiply_adds += t * (patches * a_patch + attention + patches // block * a_token)
    return 2 * multiply_adds


def weight_bytes(
    config: Glm4vVisionConfig,
    dtype: Literal["float32", "bfloat16", "float16"] | torch.dtype = "float32",
) -> int:
    """Counts the bytes of a tower's weights as `load_encoder` holds them.

    Whatever the dtype, patch embedding, position table and norms are in float32.

    >>> weight_bytes(Glm4vVisionConfig(), "bfloat16")
    1790552064

    Args:
        config: The tower's shape.
        dtype: Of the matrix products; by name, or as `load_encoder` takes it.

    Raises:
        ValueError: Another dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _BYTES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(_BYTES)}")
    return sum(
        math.prod(shape) * (4 if _stays_float32(tensor) else _BYTES[name])
        for tensor, shape in config.tensor_shapes().items()
    )


def _stays_float32(name: str) -> bool:
    return name.startswith(_FLOAT32_PARTS) or "norm" in name
