"""Clips to patches: the processors of the GLM-4V family for videos."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from processors.features import VideoFeatures, normalise, parse_device
from processors.frame_patcher import FramePatcher, clip_grid
from processors.inputs import flatten_videos, to_rgb, warn_of_range
from processors.metadata import VideoMetadata
from processors.options import FAMILY_VIDEO_OPTIONS, TensorKind, VideoOptions
from processors.pretrained import (
    build,
    find_processor,
    folder_reader,
    require_family,
    undescribed,
    without_video_file,
)
from processors.resize import require_torch_resample
from processors.sampling import VideoFamily, VideoSampling

if TYPE_CHECKING:
    from numpy.typing import NDArray


class VideoProcessor:
    """All but the family's rule and defaults."""

    _family: ClassVar[VideoFamily]

    def __init__(self, **options: Any) -> None:
        self.options = self._checked(FAMILY_VIDEO_OPTIONS[self._family].updated(options))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Makes the processor that a checkpoint's files describe.

        They are ``processor_config.json`` or else ``video_preprocessor_config.json``. Where only
        the image processor is described, this is the class with its defaults, and a UserWarning
        says so: transformers would take the images' much smaller budget. Otherwise as for images.

        Args:
            folder: On this machine.
            **overrides: Options over the files', by the names in ``VideoOptions``.

        Raises:
            ValueError: If the folder or the files are not there or another processor's, or on what
                ``VideoOptions`` and ``VideoSampling`` refuse; one line, with the file to blame.
        """
        read = folder_reader(folder)
        if (found := find_processor("video", folder, read)) is not None:
            return build(cls, cls._family, found, overrides)
        if (image := find_processor("image", folder, read)) is None:
            raise ValueError(undescribed("video", folder))
        require_family(image, cls._family, "video")
        warnings.warn(without_video_file(folder, cls), UserWarning, stacklevel=2)
        return cls(**overrides)

    def __call__(
        self,
        videos: object,
        *,
        video_metadata: object = None,
        return_tensors: TensorKind | None = None,
        **overrides: Any,
    ) -> VideoFeatures:
        """Same as ``preprocess``."""
        return self._preprocess(
            videos, video_metadata, overrides | {"return_tensors": return_tensors}
        )

    def preprocess(
        self,
        videos: object,
        *,
        video_metadata: object = None,
        return_tensors: TensorKind | None = None,
        **overrides: Any,
    ) -> VideoFeatures:
        """Samples, resizes, normalises and cuts clips.

        Integer levels count as 0..255 and must hold those; booleans and uint16 are scaled by the
        range of their type. Floating point counts as 0..255 unless ``do_rescale`` is False.

        Args:
            videos: A numpy array or torch tensor ``[frames, ...]`` with the channels first or last,
                a list of frames (PIL images, arrays, tensors), a list of clips, or an array with a
                batch axis. Frames of another size than their clip's first are brought to that.
            video_metadata: A ``VideoMetadata`` or a mapping of its fields, or a list of one a clip.
                Needed for sampling, and then of as many frames as the clip has.
            return_tensors: ``"pt"`` or ``"np"``.
            **overrides: Options for this call, by the names in ``VideoOptions``.

        Returns:
            The reference's ``pixel_values_videos``, to float rounding, and ``video_grid_thw``.

        Raises:
            ValueError: On what is no clip or could be read in two ways, other levels, NaN, metadata
                that do not fit, and what ``VideoOptions`` or ``VideoSampling`` refuse.
            AspectRatioError: If a side is over 200 times the other.
        """
        return self._preprocess(
            videos, video_metadata, overrides | {"return_tensors": return_tensors}
        )

    @property
    def sampling(self) -> VideoSampling:
        """Which frames are chosen, for whoever decodes a clip."""
        return self.options.sampling(self._family)

    def sample_frames(
        self,
        metadata: VideoMetadata | Mapping[str, Any],
        fps: float | None = None,
        **overrides: Any,
    ) -> NDArray[np.int64]:
        """Chooses the frames that ``preprocess`` would keep of a clip.

        Args:
            metadata: Of the clip.
            fps: Frames a second to choose. Glm46V, which goes by its schedule, ignores it here, as
                the reference, while ``preprocess`` refuses it.
            **overrides: Options for this call, by the names in ``VideoOptions``.

        Returns:
            Indices ``[n]``, as ``VideoSampling.indices`` gives them.

        Raises:
            ValueError: On what ``VideoOptions`` or ``VideoSampling`` refuse.
        """
        asked = overrides if self._family == "glm46v" else overrides | {"fps": fps}
        options = self._checked(self.options.updated(asked))
        return options.sampling(self._family).indices(VideoMetadata.parse(metadata))

    def get_num_of_video_patches(
        self,
        num_frames: int,
        height: int,
        width: int,
        videos_kwargs: Mapping[str, Any] | None = None,
    ) -> int:
        """Counts the patches that ``preprocess`` makes of a clip.

        Args:
            num_frames: Frames that are kept, so after sampling.
            height: Pixels, before resizing.
            width: Likewise.
            videos_kwargs: The overrides that ``preprocess`` would get.

        Returns:
            Patches before merging, ``t * h * w``.

        Raises:
            ValueError: Where ``preprocess`` would refuse the size or an option.
        """
        options = self._checked(self.options.updated(videos_kwargs or {}))
        return prod(clip_grid(num_frames, height, width, options))

    def patcher(self, num_frames: int, height: int, width: int) -> FramePatcher:
        """Begins to cut a clip whose frames come one by one.

        What ``preprocess`` does short of sampling and normalising, without holding the clip.

        Args:
            num_frames: Frames to come: as many as ``sampling`` chose.
            height: Pixels, before resizing.
            width: Likewise.

        Returns:
            A patcher for uint8 frames.

        Raises:
            ValueError: If a side is zero or, without resizing, does not divide.
            AspectRatioError: If a side is over 200 times the other.
        """
        return FramePatcher(num_frames, height, width, options=self.options)

    def _preprocess(
        self, videos: object, video_metadata: object, overrides: Mapping[str, Any]
    ) -> VideoFeatures:
        """Does it for both public doors, at one distance from whom a warning is for."""
        options = self._checked(self.options.updated(overrides))
        clips = flatten_videos(videos)
        described = VideoMetadata.one_each(video_metadata, len(clips))
        kept = [self._sample(*pair, options) for pair in zip(clips, described, strict=True)]
        ranges: list[NDArray[Any]] = []
        cut = [_cut(frames, options, ranges) for frames, _ in kept]
        warn_of_range(ranges, do_rescale=options.do_rescale)
        pixel_values = torch.cat([normalise(patches, options) for patches, _ in cut])
        grid_thw = torch.tensor([grid for _, grid in cut], device=pixel_values.device)
        metadata = [chosen for _, chosen in kept] if options.return_metadata else None
        if options.return_tensors == "np":
            return VideoFeatures(pixel_values.cpu().numpy(), grid_thw.cpu().numpy(), metadata)
        return VideoFeatures(pixel_values, grid_thw, metadata)

    def _checked(self, options: VideoOptions) -> VideoOptions:
        """Refuses what this class cannot do."""
        require_torch_resample(options.resample, otherwise="clips have no other class")
        parse_device(options.device)
        options.sampling(self._family)
        return options

    def _sample(
        self, clip: Sequence[object], metadata: VideoMetadata | None, options: VideoOptions
    ) -> tuple[Sequence[object], VideoMetadata]:
        """Keeps the frames that count, and says which they are."""
        if not options.do_sample_frames:
            return clip, metadata or VideoMetadata(total_num_frames=len(clip))
        if metadata is None:
            raise ValueError(
                "sampling needs a clip's frame rate: pass video_metadata, "
                "or do_sample_frames=False to keep all frames"
            )
        if metadata.total_num_frames != len(clip):
            raise ValueError(
                f"video_metadata has total_num_frames={metadata.total_num_frames!r}, "
                f"but the clip has {len(clip)} frames"
            )
        indices = tuple(options.sampling(self._family).indices(metadata).tolist())
        return [clip[index] for index in indices], replace(metadata, frames_indices=indices)


class GlmgaVideoProcessor(VideoProcessor):
    """Video processor whose levels are those of transformers' class of the same name on the CPU.

    That is ``models/glmga/video_processing_glmga.py``.

    Args:
        **options: See ``VideoOptions``, and ``size`` as the reference has it; no other name.

    Attributes:
        options: The options in force.
    """

    _family = "glmga"


class Glm46VVideoProcessor(VideoProcessor):
    """Video processor whose levels are those of transformers' class of the same name on the CPU.

    That is ``models/glm46v/video_processing_glm46v.py``. Its frame rate goes by the clip's
    duration, so ``fps`` is refused; else it takes what ``GlmgaVideoProcessor`` does.
    """

    _family = "glm46v"


class Glm4vVideoProcessor(VideoProcessor):
    """Video processor whose levels are those of transformers' class of the same name on the CPU.

    That is ``models/glm4v/video_processing_glm4v.py``. It takes what ``GlmgaVideoProcessor``
    does, and ``max_duration``.
    """

    _family = "glm4v"


def _cut(
    frames: Sequence[object], options: VideoOptions, ranges: list[NDArray[Any]]
) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """Makes levels of a clip, and notes the range of floating-point ones."""
    images = (to_rgb(frame, options) for frame in frames)
    first = next(images)
    patcher = FramePatcher(
        len(frames), first.shape[0], first.shape[1], options=options, dtype=first.dtype
    )
    for index, image in enumerate(chain([first], images)):
        if image.dtype != first.dtype:
            raise ValueError(
                f"a clip's frames must be of one type, got {first.dtype} and then {image.dtype} "
                f"for frame {index}; convert them"
            )
        patcher.add(image)
        if image.dtype != np.uint8:
            ranges.append(np.array([image.min(), image.max()]))
    return patcher.finish()
