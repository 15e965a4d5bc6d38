"""Two ways to bring a picture or a frame to its size.

Both resizers take and give channels-last arrays and keep their type: uint8 stays uint8, rounded and
clamped, which is what makes 8-bit patches possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from processors.sizes import require_sides

if TYPE_CHECKING:
    from numpy.typing import NDArray

TORCH_RESAMPLE: Final = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
"""The filters that torch has, by Pillow's number for them."""


def require_torch_resample(resample: Image.Resampling, *, otherwise: str) -> None:
    """Raises a ValueError, which says what to do ``otherwise``, on a filter that torch lacks."""
    if resample not in TORCH_RESAMPLE:
        names = ", ".join(item.name for item in TORCH_RESAMPLE)
        raise ValueError(f"resample={resample.name} is not among torch's {names}; {otherwise}")


def resize_torch(
    image: NDArray[Any],
    *,
    height: int,
    width: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[Any]:
    """Resizes as torchvision does, bit for bit on the CPU.

    Args:
        image: uint8 or float32 ``[H, W, C]``.
        height: Rows wanted.
        width: Columns wanted.
        resample: One of ``TORCH_RESAMPLE``.

    Returns:
        ``[height, width, C]`` of the same type. Bicubic float32 may leave the range of its input,
        as in the reference; uint8 is clamped.

    Raises:
        ValueError: If a side is no integer of at least 1, or torch has no such filter.
    """
    require_sides(height, width)
    require_torch_resample(resample, otherwise="use resize_pil")
    # torch reads the array in place and would warn about one that is read-only.
    writable = np.require(image, requirements=["C", "W"])
    # Permuted behind the batch axis, the layout counts as channels-last, and torch has a kernel for
    # three interleaved bytes that is twice as fast as the planar one and gives the same bits.
    planes = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    mode = TORCH_RESAMPLE[resample]
    resized = F.interpolate(planes, (height, width), mode=mode, antialias=mode != "nearest-exact")
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def resize_pil(
    image: NDArray[Any],
    *,
    height: int,
    width: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> NDArray[Any]:
    """Resizes with Pillow, whose levels differ from torch's and, since version 13, from its own.

    Args:
        image: uint8 or float32 ``[H, W, 3]``.
        height: Rows wanted.
        width: Columns wanted.
        resample: Any filter of Pillow's.

    Returns:
        ``[height, width, 3]`` of the same type. Float images are resized in float, channel by
        channel, where the reference's Pillow class takes only whole levels or quantises them.

    Raises:
        ValueError: If a side is no integer of at least 1.
    """
    require_sides(height, width)
    if image.dtype == np.uint8:
        return np.array(Image.fromarray(image).resize((width, height), resample))
    planes = [
        np.asarray(Image.fromarray(image[..., channel]).resize((width, height), resample))
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=2)
