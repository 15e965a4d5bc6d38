"""Positions of patches: rotary tables and the interpolated position embedding.

Shape suffixes:
    S: segments of a pack
    B: merge blocks of a pack
    N: patches of a pack, in merge-block order
    R: rotary angles of a patch, head_dim / 2
    K: learned position embeddings that a patch's is interpolated from, 16
    P: learned position embeddings
    D: hidden_size
    L: places along sides, one side length after the other
    A: any
    H, E: attention heads and head_dim, in `rotate`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from encoder.transfer import send

# Places of all side lengths that are kept for a device, of 384 bytes each: 12 MiB. Enough for all
# even lengths up to 360 patches. The angles' tables have a row a patch of the longest side.
_MAX_CACHED_PLACES = 2**15


class PackTables(NamedTuple):
    """Positions of a pack's patches.

    Attributes:
        cos_NR: Cosines of the rotary angles, float32; rows' angles, then columns'.
        sin_NR: Their sines.
        taps_NK: Which learned position embeddings a patch's is made of, int32.
        weights_NK: Their weights in it, float32.
    """

    cos_NR: torch.Tensor
    sin_NR: torch.Tensor
    taps_NK: torch.Tensor
    weights_NK: torch.Tensor


@dataclass(kw_only=True)
class _SideTables:
    """What one device holds.

    Attributes:
        firsts: For each side length, the row of its first place in the next four.
        row_taps_LK: What each tap of a place along the height adds to the index of a learned
            position embedding, int32. Each of the 4 comes 4 times, so that a patch's 16 are the
            sum of a row here and a row of the next: a plain sum is fast, an outer one is not.
        column_taps_LK: The same along the width.
        row_weights_LK: The taps' weights, float64.
        column_weights_LK: The same along the width.
        cos_LR: Cosines of the angles of places 0, 1, ... of any side, float32, R / 2 wide.
        sin_LR: Their sines.
    """

    firsts: dict[int, int]
    row_taps_LK: torch.Tensor
    column_taps_LK: torch.Tensor
    row_weights_LK: torch.Tensor
    column_weights_LK: torch.Tensor
    cos_LR: torch.Tensor
    sin_LR: torch.Tensor


class PositionTables:
    """Makes packs' tables on their device, from one-dimensional tables of each side length.

    Those of a side length are made on the host, once a device: of its places, not of all patches
    of a grid. The host's work for a pack is in proportion to its segments, and it waits for
    nothing. Nothing here depends on weights, so nothing is stale once other weights are loaded.
    Past `_MAX_CACHED_PLACES` places, only what the pack needs is kept.

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
        self._sides: dict[torch.device, _SideTables] = {}

    def of(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> PackTables:
        """Returns the tables of a pack.

        Args:
            sizes: `(h, w)` of each segment in patches, multiples of the merge size.
            device: Where they are made.
        """
        size_S2 = np.array(sizes, dtype=np.int32)
        assert not (size_S2 % self._merge_size).any()
        lengths, which = np.unique(size_S2, return_inverse=True)
        sides = self._of_sides(lengths.tolist(), device)
        firsts = np.array([sides.firsts[length] for length in lengths.tolist()], dtype=np.int32)
        first_S2 = firsts[which.reshape(-1, 2)]
        blocks_S2 = size_S2 // self._merge_size
        blocks_S = blocks_S2.prod(1, dtype=np.int32)
        start_S = np.cumsum(blocks_S, dtype=np.int32) - blocks_S
        of_segment_5S = np.stack([blocks_S, start_S, blocks_S2[:, 1], *first_S2.T])
        return self._gather(
            send(torch.from_numpy(of_segment_5S), device), int(blocks_S.sum()), sides
        )

    def _gather(
        self, of_segment_5S: torch.Tensor, num_blocks: int, sides: _SideTables
    ) -> PackTables:
        """The tables of a pack, from those of its sides.

        Args:
            of_segment_5S: Of each segment its merge blocks, the first of them in the pack, those
                from left to right, and the first places of its height and width, int32.
            num_blocks: Merge blocks of the pack.
            sides: On the same device.
        """
        device, merge = of_segment_5S.device, self._merge_size
        # With the size of the result given, the host does not wait for the counts.
        segment_B = torch.repeat_interleave(of_segment_5S[0], output_size=num_blocks)
        start_B, across_B, height_first_B, width_first_B = of_segment_5S[1:].index_select(
            1, segment_B
        )
        block_B = torch.arange(num_blocks, dtype=torch.int32, device=device) - start_B
        down_B = block_B // across_B
        across_1W = torch.arange(merge, dtype=torch.int32, device=device)
        down_W1 = across_1W[:, None]

        def patches(x_B: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
            """What is of a merge block, with what is of a place in it added, for all patches."""
            return (x_B[:, None, None] + within).expand(-1, merge, merge).flatten()

        top_B, left_B = down_B * merge, (block_B - down_B * across_B) * merge
        # A patch's row and column, one after the other, are one gather.
        places = torch.stack([patches(top_B, down_W1), patches(left_B, across_1W)], 1).flatten()
        row_L = patches(top_B + height_first_B, down_W1)
        column_L = patches(left_B + width_first_B, across_1W)
        taps_NK = sides.row_taps_LK.index_select(0, row_L)
        taps_NK += sides.column_taps_LK.index_select(0, column_L)
        weights_NK = sides.row_weights_LK.index_select(0, row_L)
        weights_NK *= sides.column_weights_LK.index_select(0, column_L)
        num_patches = len(row_L)
        return PackTables(
            sides.cos_LR.index_select(0, places).view(num_patches, -1),
            sides.sin_LR.index_select(0, places).view(num_patches, -1),
            taps_NK,
            weights_NK.float(),
        )

    # Kept, so that a caller's inference mode must not make them unfit for gradients.
    @torch.inference_mode(False)
    def _of_sides(self, lengths: list[int], device: torch.device) -> _SideTables:
        """The device's tables, with those of all these side lengths."""
        sides = self._sides.get(device)
        if sides is not None and all(length in sides.firsts for length in lengths):
            return sides
        held = list(sides.firsts) if sides is not None else []
        if sum({*held, *lengths}) > _MAX_CACHED_PLACES:
            held = []
        kept = sorted({*held, *lengths})
        taps_L4, weights_L4 = cubic_taps(kept, self._grid_size)
        taps_L4 = taps_L4.int()
        angles_LR = torch.arange(kept[-1], device="cpu")[:, None] * self._frequencies
        sides = _SideTables(
            firsts=dict(zip(kept, accumulate(kept, initial=0), strict=False)),
            row_taps_LK=send((taps_L4 * self._grid_size).repeat_interleave(4, 1), device),
            column_taps_LK=send(taps_L4.repeat(1, 4), device),
            row_weights_LK=send(weights_L4.repeat_interleave(4, 1), device),
            column_weights_LK=send(weights_L4.repeat(1, 4), device),
            cos_LR=send(angles_LR.cos(), device),
            sin_LR=send(angles_LR.sin(), device),
        )
        self._sides[device] = sides
        return sides


def cubic_taps(lengths: Sequence[int], grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which of `grid_size` points make each place of sides of some lengths.

    The same as `grid_sample(mode="bicubic", padding_mode="border", align_corners=False)` along
    one axis: Keys' kernel with a = -0.75, half-pixel centres, taps beyond an edge read the edge.

    Args:
        lengths: Of each side.
        grid_size: G.

    Returns:
        Int64 and float64 [L, 4], one side after the other.
    """
    place_L1 = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[:, None]
    scale_L1 = torch.from_numpy(np.repeat(grid_size / np.array(lengths), lengths))[:, None]
    centre_L1 = (place_L1.double() + 0.5) * scale_L1 - 0.5
    tap_L4 = centre_L1.floor() + torch.arange(-1, 3, device="cpu")
    return tap_L4.clamp(0, grid_size - 1).long(), _keys_kernel((centre_L1 - tap_L4).abs())


def _keys_kernel(distance: torch.Tensor, a: float = -0.75) -> torch.Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, far)


def interpolate_positions(weight_PD: torch.Tensor, tables: PackTables) -> torch.Tensor:
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
        tables.taps_NK, weight_PD, per_sample_weights=tables.weights_NK, mode="sum"
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
