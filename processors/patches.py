"""Pixels to patches: the order in which the encoder reads an image.

Letters in comments: ``t`` temporal patches, ``T`` frames in one, ``h`` and ``w`` merge blocks down
and across, ``m`` patches along a merge block's side, ``P`` pixels along a patch's side, ``C``
channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


def patchify(
    frames: NDArray[_Scalar],
    *,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    merge_size: int = 2,
) -> tuple[NDArray[_Scalar], tuple[int, int, int]]:
    """Cuts frames into flat patches, in the reference's merge-block order.

    Rows run over temporal patches, then merge blocks from left to right and top to bottom, then the
    patches within a block likewise. So ``merge_size**2`` consecutive rows make one token, and
    ``h * w`` one segment. Columns run over channel, frame, row, column of a patch. A still is one
    frame with a temporal patch size of 1; the reference's layout of it, which repeats the frame,
    comes of frames that are ``np.broadcast_to`` that many.

    Args:
        frames: ``[t * T, height, width, C]`` of any type; need not be contiguous.
        patch_size: Pixels along a patch's side, P.
        temporal_patch_size: Frames in a patch, T.
        merge_size: Patches along a merge block's side, m.

    Returns:
        ``[t * h * w, C * T * P * P]`` of the frames' type, contiguous, in memory of its own, and
        the grid ``(t, h, w)`` in patches.

    Raises:
        ValueError: If the array is of another shape, or its sides or frames do not divide.
    """
    if frames.ndim != 4:
        raise ValueError(
            "frames have four dimensions, [frames, height, width, channels], "
            f"got shape {frames.shape}; pass an image as image[None]"
        )
    num_frames, height, width, channels = frames.shape
    block = patch_size * merge_size
    if not height or not width or height % block or width % block:
        raise ValueError(
            f"both sides must be multiples of patch_size * merge_size = {block}, "
            f"got {height} x {width}"
        )
    if not num_frames or num_frames % temporal_patch_size:
        raise ValueError(
            f"the number of frames must be a multiple of temporal_patch_size = "
            f"{temporal_patch_size}, got {num_frames}"
        )
    grid = (num_frames // temporal_patch_size, height // patch_size, width // patch_size)
    if frames.strides[2:] != (channels * frames.itemsize, frames.itemsize):
        frames = np.ascontiguousarray(frames)
    # A row of a patch is copied as one value, and then each patch by itself: together that takes
    # two thirds of the time of one copy with strides of a channel.
    row = np.dtype((np.void, patch_size * channels * frames.itemsize))
    tThmPwm: NDArray[Any] = frames.reshape(
        grid[0],
        temporal_patch_size,
        height // block,
        merge_size,
        patch_size,
        width // block,
        merge_size,
        patch_size * channels,
    ).view(row)[..., 0]
    thwmmTP = tThmPwm.transpose(0, 2, 5, 3, 6, 1, 4).copy()
    pixels = thwmmTP.view(frames.dtype).reshape(math.prod(grid), -1, channels)
    return pixels.transpose(0, 2, 1).reshape(math.prod(grid), -1), grid
