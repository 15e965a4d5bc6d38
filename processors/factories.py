"""Processors by the names that the standalone GLM-4V encoder's documentation gives them."""

from __future__ import annotations

from typing import Any

from processors.image import Glm4vImageProcessor
from processors.video import Glm4vVideoProcessor


def create_glm4v_image_processor(**options: Any) -> Glm4vImageProcessor:
    """Makes an image processor of GLM-4.1V's, ``Glm4vImageProcessor``.

    >>> create_glm4v_image_processor(patch_size=16).get_number_of_image_patches(512, 512)
    1024

    Args:
        **options: See ``ImageOptions``; transformers' defaults, and unknown names are refused.

    Raises:
        ValueError: On what ``ImageOptions`` refuses.
    """
    return Glm4vImageProcessor(**options)


def create_glm4v_video_processor(**options: Any) -> Glm4vVideoProcessor:
    """Makes a video processor of GLM-4.1V's, ``Glm4vVideoProcessor``.

    >>> create_glm4v_video_processor(fps=1.0, temporal_patch_size=4).sample_frames(
    ...     {"total_num_frames": 72, "fps": 24.0}
    ... )
    array([ 0, 24, 48, 71])

    Args:
        **options: See ``VideoOptions``; transformers' defaults, and unknown names are refused.

    Raises:
        ValueError: On what ``VideoOptions`` and ``VideoSampling`` refuse.
    """
    return Glm4vVideoProcessor(**options)
