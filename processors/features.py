"""What the processors return, and how levels become what a model sees."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from processors.metadata import VideoMetadata
    from processors.options import ImageOptions


@dataclass(frozen=True, eq=False)
class Features(Mapping[str, Any]):
    """A mapping of its own fields, without those that are None."""

    def __getitem__(self, key: str) -> Any:
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        names = (field.name for field in fields(self))
        return (name for name in names if getattr(self, name) is not None)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def keys(self) -> KeysView[str]:
        """The names of what is there, which print without the values."""
        return dict.fromkeys(self).keys()


@dataclass(frozen=True, eq=False)
class ImageFeatures(Features):
    """Patches of one or several images.

    transformers' whole models take them by name, with ``**``; a vision model takes
    ``(pixel_values, image_grid_thw)``, as ``encoder.Glm4vVisionModel`` does.

    Attributes:
        pixel_values: float32 ``[patches, 3 * temporal_patch_size * patch_size**2]``, image after
            image.
        image_grid_thw: int64 ``[images, 3]``, patches over time, height and width.
    """

    pixel_values: Any
    image_grid_thw: Any


@dataclass(frozen=True, eq=False)
class VideoFeatures(Features):
    """Patches of one or several clips.

    transformers' whole models take them by name, with ``**``; a vision model takes
    ``(pixel_values_videos, video_grid_thw)``, as ``encoder.Glm4vVisionModel`` does.

    Attributes:
        pixel_values_videos: float32 ``[patches, 3 * temporal_patch_size * patch_size**2]``, clip
            after clip.
        video_grid_thw: int64 ``[clips, 3]``, patches over time, height and width.
        video_metadata: With ``return_metadata``, one a clip, with the ``frames_indices`` that were
            chosen.
    """

    pixel_values_videos: Any
    video_grid_thw: Any
    video_metadata: list[VideoMetadata] | None = None


def parse_device(device: torch.device | str | None) -> torch.device | None:
    """Takes what names a device to torch, and None.

    Raises:
        ValueError: If it names none.
    """
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device must be one of torch's, such as 'cuda:0'; got {device!r}"
        ) from None


def normalise(patches: NDArray[Any], options: ImageOptions) -> torch.Tensor:
    """Makes ``pixel_values`` of levels.

    Args:
        patches: ``[patches, 3 * frames * patch_size**2]``, for ``temporal_patch_size`` frames or,
            for a still, one, which is repeated.
        options: Where the levels are to go, and by which constants.

    Returns:
        float32 ``[patches, 3 * temporal_patch_size * patch_size**2]``.

    Raises:
        ValueError: If the device is not to be had.
    """
    _require_device(options.device)
    levels = torch.from_numpy(patches).to(options.device)
    values = levels.to(torch.float32).view(len(patches), 3, -1, options.patch_size**2)
    scale = options.rescale_factor if options.do_rescale else 1.0
    if options.do_normalize:
        # In the reference's order of operations: its constants are float32 and swallow the scale.
        mean = torch.tensor(options.image_mean, device=values.device) * (1.0 / scale)
        std = torch.tensor(options.image_std, device=values.device) * (1.0 / scale)
        values = (values - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    else:
        values = values * scale
    repeated = values.expand(-1, -1, options.temporal_patch_size, -1)
    return repeated.reshape(len(patches), -1)


def _require_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # the former where torch is built without it
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} is not to be had here: {reason}") from error
