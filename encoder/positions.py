"""Positions of patches: rotary tables and the interpolated position embedding.

Shape suffixes:
    S: patches of one segment, h * w, in merge-block order
    N: patches of a pack
    R: rotary angles of a patch, head_dim / 2
    G: side of the square of learned position embeddings
    H, W: rows and columns of a grid, in patches
    D: hidden_size
    A: any
    H, E: attention heads and head_dim, in `rotate`
"""

import math
from typing import NamedTuple

import torch

# Patches whose tables are kept: about 130 MB at 128 wide heads.
_MAX_CACHED_PATCHES = 2**18


class GridTables(NamedTuple):
    """Tables of one `(h, w)`, float32.

    Attributes:
        cos_SR: Cosines of the rotary angles; rows' angles, then columns'.
        sin_SR: Their sines.
        rows_HG: Weights that resample the learned rows to h rows.
        columns_WG: Weights that resample the learned columns to w columns.
    """

    cos_SR: torch.Tensor
    sin_SR: torch.Tensor
    rows_HG: torch.Tensor
    columns_WG: torch.Tensor


class PositionTables:
    """Makes and keeps the tables of each `(h, w)` on each device.

    Nothing here depends on weights, so nothing can be stale once other weights are loaded. The
    least recently used grids are dropped past `_MAX_CACHED_PATCHES` patches.

    Args:
        head_dim: Width of an attention head.
        rope_theta: Base wavelength of the rotary embedding.
        grid_size: G.
        merge_size: Side of a merge block, in patches.
    """

    def __init__(
        self, *, head_dim: int, rope_theta: float, grid_size: int, merge_size: int
    ) -> None:
        # Frequencies never follow the model's dtype. transformers' `.to(bfloat16)` rounds them by
        # up to 0.2%: a good part of a radian at the far end of a large picture.
        exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device="cpu")
        self._frequencies = 1.0 / (rope_theta ** (exponents / (head_dim // 2)))
        self._grid_size = grid_size
        self._merge_size = merge_size
        self._cache: dict[tuple[int, int, torch.device], GridTables] = {}
        self._num_cached_patches = 0

    def get(self, height: int, width: int, device: torch.device) -> GridTables:
        """Returns the tables of a grid of `height * width` patches."""
        key = (height, width, device)
        tables = self._cache.pop(key, None)
        if tables is None:
            tables = self._make(height, width, device)
            self._num_cached_patches += height * width
        self._cache[key] = tables  # the last key is the most recently used
        while self._num_cached_patches > _MAX_CACHED_PATCHES and len(self._cache) > 1:
            oldest = next(iter(self._cache))
            del self._cache[oldest]
            self._num_cached_patches -= oldest[0] * oldest[1]
        return tables

    # Kept, so that a caller's inference mode must not make them unfit for gradients.
    @torch.inference_mode(False)
    def _make(self, height: int, width: int, device: torch.device) -> GridTables:
        row_S, column_S = patch_coordinates(height, width, self._merge_size)
        angles_SR = torch.cat(
            [row_S[:, None] * self._frequencies, column_S[:, None] * self._frequencies], dim=-1
        )
        return GridTables(
            angles_SR.cos().to(device),
            angles_SR.sin().to(device),
            bicubic_matrix(height, self._grid_size).to(device),
            bicubic_matrix(width, self._grid_size).to(device),
        )


def patch_coordinates(
    height: int, width: int, merge_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns row and column of each patch, int64 [S] each, in merge-block order.

    Blocks run left to right and top to bottom, and so do the patches in a block: the order of
    transformers' `pixel_values`.
    """
    position_HW = torch.arange(height * width, device="cpu").view(height, width)
    position_S = to_merge_blocks(position_HW.unsqueeze(-1), merge_size).squeeze(-1)
    return position_S // width, position_S % width


def to_merge_blocks(x_HWD: torch.Tensor, merge_size: int) -> torch.Tensor:
    """Reorders a grid from raster order to merge-block order: [H, W, D] to [S, D]."""
    height, width, dim = x_HWD.shape
    assert height % merge_size == 0 and width % merge_size == 0
    blocks = x_HWD.view(height // merge_size, merge_size, width // merge_size, merge_size, dim)
    return blocks.transpose(1, 2).reshape(height * width, dim)


def bicubic_matrix(length: int, grid_size: int) -> torch.Tensor:
    """Returns the weights that resample `grid_size` points to `length`, float32 [length, G].

    The same as `grid_sample(mode="bicubic", padding_mode="border", align_corners=False)` along
    one axis: Keys' kernel with a = -0.75, half-pixel centres, taps beyond an edge read the edge.
    Two such matrices replace the sampling of every patch's 16 neighbours.
    """
    matrix = torch.zeros(length, grid_size, dtype=torch.float64, device="cpu")
    for i in range(length):
        centre = (i + 0.5) * grid_size / length - 0.5
        left = math.floor(centre)
        for tap in range(left - 1, left + 3):
            matrix[i, min(max(tap, 0), grid_size - 1)] += _keys_kernel(abs(centre - tap))
    return matrix.float()


def _keys_kernel(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    if distance < 2:
        return ((distance - 5) * distance + 8) * distance * a - 4 * a
    return 0.0


def interpolate_positions(
    weight_GGD: torch.Tensor, tables: GridTables, merge_size: int
) -> torch.Tensor:
    """Resamples the learned position embedding to one grid.

    Args:
        weight_GGD: Learned embedding, float32 [G, G, D].
        tables: The grid's.
        merge_size: Side of a merge block, in patches.

    Returns:
        Float32 [S, D] in merge-block order.
    """
    dim = weight_GGD.shape[-1]
    by_row_HGD = (tables.rows_HG @ weight_GGD.flatten(1)).view(-1, weight_GGD.shape[1], dim)
    return to_merge_blocks(torch.matmul(tables.columns_WG, by_row_HGD), merge_size)


def rotate(x_NAHE: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor) -> torch.Tensor:
    """Turns queries and keys by their positions, in float32 whatever their dtype.

    Args:
        x_NAHE: [N, A, heads, head_dim].
        cos_NR: Float32 [N, R].
        sin_NR: Float32 [N, R].

    Returns:
        The same shape and dtype.
    """
    cos, sin = cos_NR[:, None, None, :], sin_NR[:, None, None, :]
    first, second = x_NAHE.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x_NAHE.dtype)
