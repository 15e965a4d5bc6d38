"""Processors by the names that the standalone GLM-4V encoder's documentation gives them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, Final

from processors.image import Glm4vImageProcessor, Glm46VImageProcessor, GlmgaImageProcessor
from processors.pretrained import (
    Read,
    build,
    find_processor,
    folder_reader,
    undescribed,
    without_video_file,
)
from processors.sampling import VideoFamily
from processors.video import (
    Glm4vVideoProcessor,
    Glm46VVideoProcessor,
    GlmgaVideoProcessor,
    VideoProcessor,
)

_IMAGE_CLASSES: Final[dict[VideoFamily, type[GlmgaImageProcessor]]] = {
    "glmga": GlmgaImageProcessor,
    "glm46v": Glm46VImageProcessor,
    "glm4v": Glm4vImageProcessor,
}
VIDEO_CLASSES: Final[dict[VideoFamily, type[VideoProcessor]]] = {
    "glmga": GlmgaVideoProcessor,
    "glm46v": Glm46VVideoProcessor,
    "glm4v": Glm4vVideoProcessor,
}


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


def load_processors(
    location: str | os.PathLike[str], *, read: Read | None = None, **overrides: Any
) -> tuple[GlmgaImageProcessor, VideoProcessor]:
    """Makes both processors that a checkpoint's files describe, of the classes that they name.

    Each is what its class's ``from_pretrained`` makes, in torch's class. A file without a type
    takes the other's family, and Glmga where both are without.

    Args:
        location: A folder on this machine or, with ``read``, any name for messages.
        read: Gives the content of a checkpoint's file by its name, None where there is no such
            file: for checkpoints that lie elsewhere.
        **overrides: Options over the files' for both, such as a model's ``patch_size``,
            ``temporal_patch_size`` and ``merge_size``, by the names in ``ImageOptions``.

    Raises:
        ValueError: As ``from_pretrained``.
    """
    return make_processors(location, read or folder_reader(location), overrides, stacklevel=3)


def make_processors(
    location: str | os.PathLike[str], read: Read, overrides: Mapping[str, Any], *, stacklevel: int
) -> tuple[GlmgaImageProcessor, VideoProcessor]:
    """Does what ``load_processors`` does, and warns so many calls above."""
    image, video = find_processor("image", location, read), find_processor("video", location, read)
    if image is None:
        raise ValueError(undescribed("image", location))
    family = image.family or (video and video.family) or "glmga"
    image_processor = build(_IMAGE_CLASSES[family], family, image, overrides)
    if video is None:
        cls = VIDEO_CLASSES[family]
        warnings.warn(without_video_file(location, cls), UserWarning, stacklevel=stacklevel)
        return image_processor, cls(**overrides)
    family = video.family or family
    return image_processor, build(VIDEO_CLASSES[family], family, video, overrides)
