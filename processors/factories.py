"""Processors by the names that the standalone GLM-4V encoder's documentation gives them."""

from __future__ import annotations

from typing import Any

from processors.image import Glm4vImageProcessor
from processors.video import Glm4vVideoProcessor


def create_glm4v_image_processor(**options: Any) -> Glm4vImageProcessor:
    """Makes an image processor of GLM-4.1V's.

    Args:
        **options: See ``ImageOptions``; transformers' defaults, and unknown names are refused.

    Raises:
        ValueError: On what ``ImageOptions`` refuses.
    """
    return Glm4vImageProcessor(**options)


def create_glm4v_video_processor(**options: Any) -> Glm4vVideoProcessor:
    """Makes a video processor of GLM-4.1V's.

    Args:
        **options: See ``VideoOptions``; transformers' defaults, and unknown names are refused.

    Raises:
        ValueError: On what ``VideoOptions`` and ``VideoSampling`` refuse.
    """
    return Glm4vVideoProcessor(**options)
