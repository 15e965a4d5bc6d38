"""Bytes to patches: decoding, resizing and cutting as the GLM-4V family's processors do it.

Decoding and choosing frames need no torch, so it is imported only by those who ask for the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from processors.decode import DEFAULT_MAX_PIXELS, DecodedImage, decode_image
from processors.errors import AspectRatioError, DecodeError, ErrorCode
from processors.formats import ImageFormat
from processors.metadata import VideoMetadata
from processors.options import ImageOptions, VideoOptions
from processors.patches import patchify
from processors.sampling import VideoFamily, VideoSampling

if TYPE_CHECKING:
    from processors.factories import (
        create_glm4v_image_processor,
        create_glm4v_video_processor,
        load_processors,
    )
    from processors.features import ImageFeatures, VideoFeatures
    from processors.frame_patcher import FramePatcher
    from processors.image import (
        Glm4vImageProcessor,
        Glm46VImageProcessor,
        GlmgaImageProcessor,
        GlmgaImageProcessorPil,
    )
    from processors.media import Media, MediaInfo, MediaOptions, open_media
    from processors.resize import resize_pil, resize_torch
    from processors.sizes import smart_resize
    from processors.video import Glm4vVideoProcessor, Glm46VVideoProcessor, GlmgaVideoProcessor

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "AspectRatioError",
    "DecodeError",
    "DecodedImage",
    "ErrorCode",
    "FramePatcher",
    "Glm4vImageProcessor",
    "Glm4vVideoProcessor",
    "Glm46VImageProcessor",
    "Glm46VVideoProcessor",
    "GlmgaImageProcessor",
    "GlmgaImageProcessorPil",
    "GlmgaVideoProcessor",
    "ImageFeatures",
    "ImageFormat",
    "ImageOptions",
    "Media",
    "MediaInfo",
    "MediaOptions",
    "VideoFamily",
    "VideoFeatures",
    "VideoMetadata",
    "VideoOptions",
    "VideoSampling",
    "create_glm4v_image_processor",
    "create_glm4v_video_processor",
    "decode_image",
    "load_processors",
    "open_media",
    "patchify",
    "resize_pil",
    "resize_torch",
    "smart_resize",
]

_LAZY = {
    "FramePatcher": "processors.frame_patcher",
    "Glm4vImageProcessor": "processors.image",
    "Glm4vVideoProcessor": "processors.video",
    "Glm46VImageProcessor": "processors.image",
    "Glm46VVideoProcessor": "processors.video",
    "GlmgaImageProcessor": "processors.image",
    "GlmgaImageProcessorPil": "processors.image",
    "GlmgaVideoProcessor": "processors.video",
    "ImageFeatures": "processors.features",
    "Media": "processors.media",
    "MediaInfo": "processors.media",
    "MediaOptions": "processors.media",
    "VideoFeatures": "processors.features",
    "create_glm4v_image_processor": "processors.factories",
    "create_glm4v_video_processor": "processors.factories",
    "load_processors": "processors.factories",
    "open_media": "processors.media",
    "resize_pil": "processors.resize",
    "resize_torch": "processors.resize",
    "smart_resize": "processors.sizes",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # For help() and completion, which do not read `_LAZY`.
