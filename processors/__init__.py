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
from processors.options import ImageOptions
from processors.patches import patchify
from processors.sampling import VideoFamily, VideoSampling

if TYPE_CHECKING:
    from processors.image import GlmgaImageProcessor, GlmgaImageProcessorPil, ImageFeatures
    from processors.resize import resize_pil, resize_torch, smart_resize

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "AspectRatioError",
    "DecodeError",
    "DecodedImage",
    "ErrorCode",
    "GlmgaImageProcessor",
    "GlmgaImageProcessorPil",
    "ImageFeatures",
    "ImageFormat",
    "ImageOptions",
    "VideoFamily",
    "VideoMetadata",
    "VideoSampling",
    "decode_image",
    "patchify",
    "resize_pil",
    "resize_torch",
    "smart_resize",
]

_LAZY = {
    "GlmgaImageProcessor": "processors.image",
    "GlmgaImageProcessorPil": "processors.image",
    "ImageFeatures": "processors.image",
    "resize_pil": "processors.resize",
    "resize_torch": "processors.resize",
    "smart_resize": "processors.resize",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
