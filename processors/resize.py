"""The size that a picture or clip is brought to, and two ways to bring it there.

Both resizers take and give channels-last arrays and keep their type: uint8 stays uint8, rounded and
clamped, which is what makes 8-bit patches possible.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from processors.errors import AspectRatioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from processors.options import ImageOptions

MAX_ASPECT_RATIO: Final = 200

TORCH_RESAMPLE: Final = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
"""The filters that torch has, by Pillow's number for them."""


def smart_resize(  # noqa: PLR0917 - the reference's signature
    num_frames: int,
    height: int,
    width: int,
    temporal_factor: int = 2,
    factor: int = 28,
    min_pixels: int = 112 * 112,
    max_pixels: int = 14 * 14 * 2 * 2 * 2 * 6144,
) -> tuple[int, int]:
    """Finds the size that is nearest to an image's own, divisible, and within a pixel budget.

    transformers' function of the same name in ``models/glm4v/image_processing_glm4v.py``, to the
    last rounding: ``round`` goes to even (5 frames at a temporal factor of 2 budget as 4), a side
    under ``factor`` is first scaled up to it, and a factor that is larger than the budget wins over
    the budget.

    >>> smart_resize(2, 1024, 1000)
    (1036, 1008)

    Args:
        num_frames: Frames that share the budget; ``temporal_factor`` for a still.
        height: Pixels.
        width: Pixels.
        temporal_factor: Frames in a temporal patch.
        factor: What both sides of the result are multiples of.
        min_pixels: Least ``frames * height * width``; smaller ones are enlarged.
        max_pixels: Most ``frames * height * width``; larger ones are reduced.

    Returns:
        Height and width in pixels.

    Raises:
        AspectRatioError: If a side is over 200 times the other; 200 itself is accepted.
        ValueError: If there are fewer frames than ``temporal_factor``, a side, frames or factors
            are no integers of at least 1, or ``min_pixels`` is over ``max_pixels``.
    """
    _require_sides(height, width)
    require_counts(num_frames=num_frames, temporal_factor=temporal_factor, factor=factor)
    if not min_pixels <= max_pixels >= 1:
        raise ValueError(
            "min_pixels must be at most max_pixels, and that at least 1, "
            f"got {min_pixels} and {max_pixels}"
        )
    if num_frames < temporal_factor:
        raise ValueError(
            f"num_frames must be at least temporal_factor ({temporal_factor}), got {num_frames}; "
            "repeat the last frame"
        )
    given = f"{height} x {width}"
    if height < factor or width < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise AspectRatioError(
            f"the aspect ratio must be at most {MAX_ASPECT_RATIO}, got {ratio:.1f} "
            f"({given}); crop the image"
        )

    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    volume = round(num_frames / temporal_factor) * temporal_factor * new_height * new_width
    if volume > max_pixels:
        shrink = math.sqrt(num_frames * height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < min_pixels:
        enlarge = math.sqrt(min_pixels / (num_frames * height * width))
        new_height = math.ceil(height * enlarge / factor) * factor
        new_width = math.ceil(width * enlarge / factor) * factor
    return new_height, new_width


def target_size(num_frames: int, height: int, width: int, options: ImageOptions) -> tuple[int, int]:
    """Finds the size that a processor brings an image or a clip to.

    Args:
        num_frames: Frames that share the budget; fewer than a patch has count as so many, because
            the last one is repeated. ``temporal_patch_size`` for a still.
        height: Pixels.
        width: Pixels.
        options: What the processor was told.

    Returns:
        Height and width in pixels.

    Raises:
        AspectRatioError: If a side is over 200 times the other.
        ValueError: If a side is no integer of at least 1 or, without resizing, does not divide.
    """
    if options.do_resize:
        return smart_resize(
            num_frames=max(num_frames, options.temporal_patch_size),
            height=height,
            width=width,
            temporal_factor=options.temporal_patch_size,
            factor=options.factor,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
        )
    _require_sides(height, width)
    block = options.patch_size * options.merge_size
    if height % block or width % block:
        raise ValueError(
            f"do_resize=False takes sides that are multiples of patch_size * merge_size = {block}, "
            f"got {height} x {width}; resize them or leave do_resize on"
        )
    return height, width


def require_counts(**counts: object) -> None:
    """Raises a ValueError on the first that is no integer of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _require_sides(height: object, width: object) -> None:
    for side in (height, width):
        if not isinstance(side, (int, np.integer)) or side < 1:
            raise ValueError(
                "an image has a whole number of pixels a side, at least one, "
                f"got {height!r} x {width!r}"
            )


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
    _require_sides(height, width)
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
    _require_sides(height, width)
    if image.dtype == np.uint8:
        return np.array(Image.fromarray(image).resize((width, height), resample))
    planes = [
        np.asarray(Image.fromarray(image[..., channel]).resize((width, height), resample))
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=2)
