"""The size that a picture or clip is brought to: arithmetic alone, which needs no torch."""

from __future__ import annotations

import math
from operator import ge
from typing import TYPE_CHECKING, Final

import numpy as np

from processors.errors import AspectRatioError

if TYPE_CHECKING:
    from processors.options import ImageOptions

MAX_ASPECT_RATIO: Final = 200

_REDUCTIONS: Final = (8, 4, 2)


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
    require_sides(height, width)
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
    require_sides(height, width)
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


def require_sides(height: object, width: object) -> None:
    """Raises a ValueError unless both are integers of at least 1."""
    for side in (height, width):
        if not isinstance(side, (int, np.integer)) or side < 1:
            raise ValueError(
                "an image has a whole number of pixels a side, at least one, "
                f"got {height!r} x {width!r}"
            )


def reduction(height: int, width: int, options: ImageOptions) -> int:
    """Finds by how much an image may be reduced before it is resized, and not be enlarged then.

    >>> from processors import ImageOptions
    >>> reduction(896, 1200, ImageOptions(max_pixels=2 * 50_176))
    4

    Args:
        height: Pixels.
        width: Likewise.
        options: What the processor was told.

    Returns:
        8, 4 or 2, or 1 where that would be too much or the size is refused.
    """
    try:
        least = target_size(options.temporal_patch_size, height, width, options)
    except ValueError:
        return 1
    for factor in _REDUCTIONS:
        if all(map(ge, reduced_size(height, width, factor), least)):
            return factor
    return 1


def reduced_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Finds the size of an image that is reduced: sides are rounded up."""
    return -(-height // factor), -(-width // factor)
