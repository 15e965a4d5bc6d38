"""Positions of patches: rotary tables and the interpolated position embedding.

Shape suffixes:
    S: patches of one segment, h * w, in merge-block order
    N: patches of a pack
    R: rotary angles of a patch, head_dim / 2
    K: learned position embeddings that a patch's is interpolated from, 16
    P: learned position embeddings
    D: hidden_size
    A: any
    H, E: attention heads and head_dim, in `rotate`
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from encoder.transfer import send

# Patches whose tables are kept: about 170 MB at 128 wide heads.
_MAX_CACHED_PATCHES = 2**18


class GridTables(NamedTuple):
    """Tables of one `(h, w)`, or of several, one after the other.

    Attributes:
        cos_SR: Cosines of the rotary angles, float32; rows' angles, then columns'.
        sin_SR: Their sines.
        taps_SK: Which learned position embeddings a patch's is made of, int32.
        weights_SK: Their weights in it, float32.
    """

    cos_SR: torch.Tensor
    sin_SR: torch.Tensor
    taps_SK: torch.Tensor
    weights_SK: torch.Tensor


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
        rows, row_weights = (x[row_S, :, None] for x in cubic_taps(height, self._grid_size))
        columns, column_weights = (x[column_S, None] for x in cubic_taps(width, self._grid_size))
        tables = GridTables(
            angles_SR.cos(),
            angles_SR.sin(),
            (rows * self._grid_size + columns).flatten(1).int(),
            (row_weights * column_weights).flatten(1).float(),
        )
        return GridTables(*(send(table, device) for table in tables))


def patch_coordinates(
    height: int, width: int, merge_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns row and column of each patch, int64 [S] each, in merge-block order.

    Blocks run left to right and top to bottom, and so do the patches in a block: the order of
    transformers' `pixel_values`.
    """
    assert height % merge_size == 0 and width % merge_size == 0
    blocks = (height // merge_size, merge_size, width // merge_size, merge_size)
    position_S = torch.arange(height * width, device="cpu").view(blocks).transpose(1, 2).flatten()
    return position_S // width, position_S % width


def cubic_taps(length: int, grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which of `grid_size` points make each of `length`, int64 and float64 [length, 4].

    The same as `grid_sample(mode="bicubic", padding_mode="border", align_corners=False)` along
    one axis: Keys' kernel with a = -0.75, half-pixel centres, taps beyond an edge read the edge.
    """
    centre_L1 = (torch.arange(length, dtype=torch.float64, device="cpu")[:, None] + 0.5) * (
        grid_size / length
    ) - 0.5
    tap_L4 = centre_L1.floor() + torch.arange(-1, 3, device="cpu")
    return tap_L4.clamp(0, grid_size - 1).long(), _keys_kernel((centre_L1 - tap_L4).abs())


def _keys_kernel(distance: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)


def interpolate_positions(weight_PD: torch.Tensor, tables: GridTables) -> torch.Tensor:
    """Resamples the learned position embedding to a pack's grids.

    Made anew from the parameter for each pack, so that it cannot go stale: the 16 rows that make
    a patch's are read and added in one go, which takes 17 us for 256 patches of 128 values on
    one CPU core.

    Args:
        weight_PD: Learned embedding, float32.
        tables: The pack's.

    Returns:
        Float32 [N, D].
    """
    return F.embedding_bag(
        tables.taps_SK, weight_PD, per_sample_weights=tables.weights_SK, mode="sum"
    )


def rotate(x_NAHE: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor) -> torch.Tensor:
    """Turns queries and keys by their positions, in float32 whatever their dtype.

    Args:
        x_NAHE: [N, A, heads, head_dim].
        cos_NR: Float32 [N, R].
        sin_NR: Float32 [N, R].

    Returns:
        The same shape and dtype.
    """
    half = cos_NR.shape[1]
    cos, sin = cos_NR[:, None, None, None, :], sin_NR[:, None, None, :]
    x32 = x_NAHE.float()
    turned = (x32.view(*x32.shape[:-1], 2, half) * cos).flatten(-2)
    # In place: three passes over memory instead of seven.
    turned[..., :half].addcmul_(x32[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(x32[..., :half], sin)
    return turned.to(x_NAHE.dtype)
