"""The processors' options of a run: what the checkpoint brings, and what the command line says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from encoder import Glm4vVisionConfig
from pipeline.config import Animated, Decode, EmbedConfig
from pipeline.errors import UsageError
from pipeline.processor_files import Brought
from processors import ImageOptions, VideoFamily, VideoOptions, VideoSampling
from processors.options import FAMILY_VIDEO_OPTIONS
from processors.sandbox import MAX_FRAMES

# What `--decode` is called among the fields of the fingerprint.
_DECODERS: dict[Decode, str] = {
    "exact": "pillow, pyav",
    "fast": "libjpeg-turbo reduced, pillow, pyav",
}


@dataclass(frozen=True, kw_only=True)
class ProcessorOptions:
    """How a run's items become patches."""

    images: ImageOptions
    family: VideoFamily
    videos: VideoOptions
    animated: Animated
    decode: Decode = "exact"

    @property
    def sampling(self) -> VideoSampling:
        """Which frames of a clip count."""
        return self.videos.sampling(self.family)

    @property
    def most_still_pixels(self) -> int:
        """The most `height * width` that a still has when it is resized."""
        frames = self.images.temporal_patch_size
        return _most_pixels(self.images, frames) // frames

    @property
    def most_clip_pixels(self) -> int:
        """The most `frames * height * width` that a clip's chosen frames have when resized."""
        frames = self.videos.temporal_patch_size
        most = _most_pixels(self.videos, max(frames, self.sampling.most_frames))
        # Half-even rounding lets 10 frames of 4 a patch budget as 8 and be filled up to 12; of 2 a
        # patch, an even number is chosen.
        return most if frames <= 2 else most * 3 // 2

    @property
    def semantics(self) -> dict[str, Any]:
        """What of them results depend on; the encoder's sizes count by its digest."""
        images, videos = self.images, self.videos
        return {
            "min_pixels": images.min_pixels // images.temporal_patch_size,
            "max_pixels": images.max_pixels // images.temporal_patch_size,
            "patch_expand_factor": images.patch_expand_factor,
            "video_family": self.family,
            "video_min_pixels": videos.min_pixels,
            "video_max_pixels": videos.max_pixels,
            "video_patch_expand_factor": videos.patch_expand_factor,
            "fps": videos.fps,
            "max_frames": videos.max_frames,
            "max_duration": videos.max_duration,
            "animated": self.animated,
            "decode": _DECODERS[self.decode],
            "resize": "torch-bicubic-antialias",
        }


def processor_options(
    config: EmbedConfig, brought: Brought, shape: Glm4vVisionConfig
) -> ProcessorOptions:
    """What `config` comes to with an encoder of that shape.

    Args:
        config: Its budgets and rates go before the checkpoint's.
        brought: The checkpoint's; a preset brings nothing.
        shape: The encoder's sizes, which the processors' follow.

    Raises:
        UsageError: The options do not go together.
    """
    try:
        images = ImageOptions(
            **_still_budget(config, brought.image, shape.temporal_patch_size),
            **_kept(brought.image, ("patch_expand_factor",)),
            **_sizes(shape),
        )
    except ValueError as error:
        raise UsageError(f"--encoder {config.encoder}: its image processor: {error}") from error
    return ProcessorOptions(
        images=images,
        family=brought.family,
        videos=_video_options(config, brought.family, brought.video, shape),
        animated=config.animated,
        decode=config.decode,
    )


def _video_options(
    config: EmbedConfig, family: VideoFamily, brought: dict[str, Any], shape: Glm4vVisionConfig
) -> VideoOptions:
    own = FAMILY_VIDEO_OPTIONS[family]
    try:
        options = own.updated(
            _kept(brought, ("patch_expand_factor", "fps", "max_frames", "max_duration"))
            | _kept(vars(config), ("fps", "max_frames"))
            | _clip_budget(config, brought, own)
            | _sizes(shape)
        )
        sampling = options.sampling(family)
    except ValueError as error:
        raise UsageError(f"clips are sampled as by {family}: {error}") from error
    most = sampling.most_frames
    if most > MAX_FRAMES:
        raise UsageError(
            f"up to {most} frames of a clip are asked for, {MAX_FRAMES} are the most; "
            "lower --max-frames or --fps"
        )
    return _settled(options, sampling)


def recorded_options(semantics: Mapping[str, Any], shape: Glm4vVisionConfig) -> ProcessorOptions:
    """The options whose `semantics` these are, with an encoder of that shape."""
    frames = shape.temporal_patch_size
    return ProcessorOptions(
        images=ImageOptions(
            min_pixels=semantics["min_pixels"] * frames,
            max_pixels=semantics["max_pixels"] * frames,
            patch_expand_factor=semantics["patch_expand_factor"],
            **_sizes(shape),
        ),
        family=semantics["video_family"],
        videos=VideoOptions(
            min_pixels=semantics["video_min_pixels"],
            max_pixels=semantics["video_max_pixels"],
            patch_expand_factor=semantics["video_patch_expand_factor"],
            fps=semantics["fps"],
            max_frames=semantics["max_frames"],
            max_duration=semantics["max_duration"],
            **_sizes(shape),
        ),
        animated=semantics["animated"],
        decode=decode_of(semantics),
    )


def decode_of(semantics: Mapping[str, Any]) -> Decode:
    """The `--decode` of an output with these `semantics`."""
    return next(name for name, decoder in _DECODERS.items() if decoder == semantics["decode"])


def _most_pixels(options: ImageOptions, frames: int) -> int:
    """The most `frames * height * width` that resizing to the budgets gives."""
    # A strip at the limit of 200 to 1 keeps one merge block's height, whatever the budget.
    strip = 201 * options.factor**2 * frames
    # What is enlarged to the least has both of its sides rounded up; a strip's are the longest.
    sides = math.sqrt(options.min_pixels / frames) * (math.sqrt(200) + math.sqrt(1 / 200))
    rounded_up = options.min_pixels + frames * options.factor * (sides + options.factor)
    return max(options.max_pixels, strip, math.ceil(rounded_up))


def _sizes(shape: Glm4vVisionConfig) -> dict[str, Any]:
    return {
        "patch_size": shape.patch_size,
        "temporal_patch_size": shape.temporal_patch_size,
        "merge_size": shape.spatial_merge_size,
    }


def _settled(options: VideoOptions, sampling: VideoSampling) -> VideoOptions:
    """The options, with the family's rates where none was given: one is as good as the other.

    So are 2 and 2.0, of which JSON makes two fingerprints.
    """
    return replace(
        options,
        fps=None if sampling.fps is None else float(sampling.fps),
        max_frames=sampling.max_frames,
        max_duration=None if sampling.max_duration is None else float(sampling.max_duration),
    )


def _still_budget(config: EmbedConfig, brought: dict[str, Any], frames: int) -> dict[str, Any]:
    # The reference's budgets count each frame of a temporal patch; ours count a still's pixels, of
    # which whole ones are recorded.
    smallest, largest = (-(-edge // frames) * frames for edge in _budget(brought, ImageOptions()))
    if config.max_pixels is not None:
        largest = config.max_pixels * frames
        smallest = min(smallest, largest)
    if config.min_pixels is not None:
        smallest = config.min_pixels * frames
    if smallest > largest:
        raise UsageError(
            f"--min-pixels {smallest // frames} is more than --max-pixels {largest // frames}"
        )
    return {"min_pixels": smallest, "max_pixels": largest}


def _clip_budget(
    config: EmbedConfig, brought: dict[str, Any], family: VideoOptions
) -> dict[str, int]:
    smallest, largest = _budget(brought, family)
    largest = config.video_max_pixels or largest
    return {"min_pixels": min(smallest, largest), "max_pixels": largest}


def _budget(brought: dict[str, Any], family: ImageOptions) -> tuple[int, int]:
    """The least and most pixels that a checkpoint allows, or its family."""
    size = brought.get("size") or {}
    return (
        size.get("shortest_edge", brought.get("min_pixels", family.min_pixels)),
        size.get("longest_edge", brought.get("max_pixels", family.max_pixels)),
    )


def _kept(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}
