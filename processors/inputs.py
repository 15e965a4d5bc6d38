"""What callers hand in as images and clips, as uint8 or float32 RGB arrays, channels last."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image

from processors.rgb import pil_to_rgb, scale_to_uint8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from processors.options import ChannelFormat, ImageOptions

_CHANNELS: Final = (1, 3, 4)
_LEVELS: Final = 255


def flatten_images(images: object) -> list[object]:
    """Lists the images in a single one, a (nested) sequence of them, or an array with a batch axis.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(images, (list, tuple)):
        flat = [image for item in images for image in _flatten(item)]
    else:
        flat = _flatten(images)
    if not flat:
        raise ValueError(f"at least one image is needed, got {images!r:.80}")
    return flat


def _flatten(images: object) -> list[object]:
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def flatten_videos(videos: object) -> list[Sequence[object]]:
    """Lists the clips in a single one, a (nested) sequence of them, or an array with a batch axis.

    A clip is an array or tensor of four dimensions, frames first, or a sequence of frames: Pillow
    images, or arrays or tensors of two or three dimensions.

    Returns:
        Clips of at least one frame, which may still be anything.

    Raises:
        ValueError: If something is none, or there is none.
    """
    if isinstance(videos, (list, tuple)) and videos:
        frames = [_is_frame(item) for item in videos]
        if all(frames):
            return [videos]
        if not any(frames):
            return [clip for item in videos for clip in flatten_videos(item)]
        raise ValueError(
            "a list holds the frames of one clip, or clips, not both, "
            f"got {sum(frames)} frames among {len(frames)} items"
        )
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        if videos.ndim == 4 and len(videos):
            return [videos]  # type: ignore[list-item]  # has all that is needed of a sequence
        if videos.ndim == 5 and len(videos):
            return [clip for item in videos for clip in flatten_videos(item)]
        raise ValueError(
            "a clip has 4 dimensions, with a frame at least (a batch of clips has 5), "
            f"got shape {tuple(videos.shape)}; pass a frame alone as a list of one"
        )
    raise ValueError(
        "a clip is an array or tensor of four dimensions or a list of frames, "
        f"got {videos!r:.80}; decode files with processors.open_media"
    )


def _is_frame(item: object) -> bool:
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim in (2, 3)
    return isinstance(item, Image.Image)


def to_rgb(image: object, options: ImageOptions) -> NDArray[Any]:
    """Converts one image to RGB, channels last.

    Pillow images are taken as they are stored: their EXIF orientation is not applied, as in the
    reference. Levels of arrays:

    * uint8: as they are. Booleans and uint16 are scaled by the range of their type.
    * other integers, whose range is no picture's: must hold 0..255.
    * floating point: as the reference takes it, 0..255 unless ``do_rescale`` is False, and then
      whatever the model is to see, usually 0..1. See ``warn_of_range``.

    An alpha channel is composited on white: 255, or 1 for floating point that is not rescaled.

    Args:
        image: A Pillow image, or an array or tensor: ``[H, W]``, or with 1, 3 or 4 channels, first
            or last according to ``input_data_format``.
        options: ``do_convert_rgb``, ``do_rescale`` and ``input_data_format`` count.

    Returns:
        ``[H, W, 3]``, uint8 or, for floating point, float32.

    Raises:
        ValueError: If it is no image, has no pixels, could be read in two ways, is not finite, or
            needs a conversion to RGB that ``do_convert_rgb=False`` forbids.
    """
    if isinstance(image, Image.Image) and image.mode != "F":
        if 0 in image.size:
            raise ValueError(f"an image needs at least one pixel a side, got {image.size}")
        if options.do_convert_rgb:
            return pil_to_rgb(image)
        if len(image.getbands()) != 3:
            raise ValueError(
                f"do_convert_rgb=False takes images of three channels, got mode {image.mode}; "
                "convert it or leave do_convert_rgb on"
            )
        return np.array(image)
    array = _to_levels(_channels_last(_to_array(image), options.input_data_format))
    return _to_three_channels(array, options)


def warn_of_range(images: Iterable[NDArray[Any]], *, do_rescale: bool) -> None:
    """Warns, once for all, of floating-point images that hardly hold the levels they count as.

    Args:
        images: What ``to_rgb`` returned.
        do_rescale: Whether floating point counts as 0..255.
    """
    floats = [image for image in images if image.dtype != np.uint8]
    if not do_rescale or not floats:
        return
    low = min(float(image.min()) for image in floats)
    high = max(float(image.max()) for image in floats)
    if low < 0 or high > _LEVELS or 0 < high <= 1:
        warnings.warn(
            f"floating-point images count as levels 0..255 and are rescaled, but these hold "
            f"{low:.4g}..{high:.4g}; pass do_rescale=False if they are scaled already",
            UserWarning,
            stacklevel=4,
        )


def _to_array(image: object) -> NDArray[Any]:
    if isinstance(image, torch.Tensor):
        if image.layout != torch.strided or image.is_meta:
            raise ValueError(
                f"a tensor must be dense and hold its values, got {image.layout} on {image.device}"
            )
        tensor = image.detach().cpu()
        # numpy has no bfloat16.
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    elif isinstance(image, (np.ndarray, Image.Image)):
        array = np.asarray(image)
    else:
        raise ValueError(
            "an image is a PIL image, a numpy array or a torch tensor, several are a list of "
            f"them, got {type(image).__name__}; decode bytes with processors.decode_image"
        )
    if array.dtype == object:
        raise ValueError(
            f"an array of objects, shape {array.shape}, is no image; "
            "pass images of different shapes as a list"
        )
    if array.size == 0:
        raise ValueError(f"an image needs at least one pixel a side, got shape {array.shape}")
    return array


def _channels_last(array: NDArray[Any], data_format: ChannelFormat | None) -> NDArray[Any]:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(
            f"an image has 2 or 3 dimensions (a batch 4), got shape {array.shape}; "
            "pass several batches as a list"
        )
    is_first, is_last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if not is_first and not is_last:
        raise ValueError(f"an image has 1, 3 or 4 channels, first or last, got shape {array.shape}")
    if data_format is None and is_first and is_last:
        raise ValueError(
            f"shape {array.shape} could be read in two ways; "
            "pass input_data_format='channels_first' or 'channels_last'"
        )
    if (data_format == "channels_first" and not is_first) or (
        data_format == "channels_last" and not is_last
    ):
        raise ValueError(
            f"input_data_format={data_format!r} expects 1, 3 or 4 channels there, "
            f"got shape {array.shape}"
        )
    if data_format == "channels_first" or (data_format is None and is_first):
        return np.moveaxis(array, 0, 2)
    return array


def _to_levels(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return scale_to_uint8(array, white=1)
    if array.dtype.newbyteorder("=") == np.uint16:
        return scale_to_uint8(array, white=65535)
    if np.issubdtype(array.dtype, np.integer):
        # Scaled by the range of int64, torch.randint(0, 256, ...) would be black without a word.
        if array.min() < 0 or array.max() > _LEVELS:
            raise ValueError(
                f"{array.dtype} images must hold levels 0..255, got {array.min()}..{array.max()}; "
                "pass 16-bit levels as uint16"
            )
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"images are integer or floating point, got {array.dtype}")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not (finite := np.isfinite(values)).all():
        row, column, channel = np.argwhere(~finite)[0]
        raise ValueError(
            f"levels must be finite and within float32, got {array[row, column, channel]} at row "
            f"{row}, column {column}, channel {channel}; replace such values"
        )
    return values


def _to_three_channels(array: NDArray[Any], options: ImageOptions) -> NDArray[Any]:
    channels = array.shape[2]
    if channels == 3:
        return np.ascontiguousarray(array)
    if not options.do_convert_rgb:
        raise ValueError(
            f"do_convert_rgb=False takes images of three channels, got {channels}; "
            "convert it or leave do_convert_rgb on"
        )
    if channels == 1:
        return np.repeat(array, 3, axis=2)
    is_levels = array.dtype == np.uint8
    white = _LEVELS if is_levels or options.do_rescale else 1
    colour, alpha = array[..., :3], array[..., 3:] / np.float32(white)
    on_white: NDArray[Any] = alpha * colour + (1 - alpha) * white
    if is_levels:
        np.rint(on_white, out=on_white)
    return on_white.astype(array.dtype)
