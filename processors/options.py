"""Options of the processors: the reference's names, checked when given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, cast

from PIL import Image

from processors.sampling import VideoFamily, VideoSampling

if TYPE_CHECKING:
    import torch

ChannelFormat = Literal["channels_first", "channels_last"]
TensorKind = Literal["pt", "np"]

_Fixed = Mapping[str, tuple[tuple[object, ...], str]]

_SWITCHES: Final = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_VIDEO_SWITCHES: Final = ("do_sample_frames", "return_metadata")
SWITCHES: Final = _SWITCHES + _VIDEO_SWITCHES
"""Options that are on or off."""
_COUNTS: Final = (
    "min_pixels",
    "max_pixels",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "patch_expand_factor",
)

# Options of the reference that change nothing at these values, and why they are refused at others.
_IMAGE_FIXED: Final[_Fixed] = {
    "data_format": (("channels_first",), "patches are flat, channels first within each"),
    "default_to_square": ((False,), "sizes are budgets of pixels, never squares"),
    "do_pad": ((False,), "images of all sizes are packed without padding"),
    "pad_size": ((), "images of all sizes are packed without padding"),
    "max_image_size": ((), "use size or max_pixels"),
    "disable_grouping": ((), "each image is resized by itself, whatever its neighbours"),
    "size_divisor": ((), "sides are multiples of patch_size * merge_size * patch_expand_factor"),
    "do_center_crop": ((False,), "crop the images before, for example with PIL.Image.crop"),
    "crop_size": ((), "crop the images before, for example with PIL.Image.crop"),
}
_VIDEO_FIXED: Final[_Fixed] = {
    **_IMAGE_FIXED,
    "num_frames": ((), "the families sample by time; use fps or max_frames"),
    # The reference's classes hold it beside the budget that it repeats.
    "max_image_size": (
        ({"longest_edge": 28 * 28 * 2 * 30000}, {"longest_edge": 28 * 28 * 2 * 55790}),
        "use size or max_pixels",
    ),
}

NO_EFFECT: Final = frozenset(_VIDEO_FIXED)
"""Options that files of the reference's classes hold and that these families never look at."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What an image processor does to an image; the defaults are the reference's.

    Raises:
        ValueError: On a value that is none of the option's, showing it.

    Attributes:
        do_resize: Bring images to a divisible size within the budget. If False, they must have one.
        min_pixels: ``size["shortest_edge"]``: least height * width * ``temporal_patch_size``.
        max_pixels: ``size["longest_edge"]``: most height * width * ``temporal_patch_size``, so with
            two frames a patch, twice the pixels that a still may have.
        resample: Filter, by Pillow's number or, as torchvision has it, by its name.
        do_rescale: Multiply levels by ``rescale_factor``.
        rescale_factor: 1 / 255, which brings levels to 0..1.
        do_normalize: Subtract ``image_mean`` and divide by ``image_std`` (after rescaling).
        image_mean: For red, green, blue; one number counts for all three.
        image_std: Likewise.
        do_convert_rgb: Take grey and transparent images. If False, images need three channels.
        patch_size: Pixels along a patch's side.
        temporal_patch_size: Frames in a patch; a still is repeated that many times.
        merge_size: Patches along the side of what becomes one token.
        patch_expand_factor: Sides are multiples of this many merge blocks.
        input_data_format: Where arrays have their channels; None finds out, and refuses shapes such
            as ``(3, H, 3)`` that could be both.
        return_tensors: ``"pt"``, ``"np"``, or None for what the class works in.
        device: Where the result is wanted; levels are computed on the CPU, so that they do not
            depend on it.
    """

    do_resize: bool = True
    min_pixels: int = 112 * 112
    max_pixels: int = 28 * 28 * 15000
    resample: Image.Resampling = Image.Resampling.BICUBIC
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    do_convert_rgb: bool = True
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    patch_expand_factor: int = 1
    input_data_format: ChannelFormat | None = None
    return_tensors: TensorKind | None = None
    device: torch.device | str | None = None

    _fixed: ClassVar[_Fixed] = _IMAGE_FIXED

    def __post_init__(self) -> None:
        # Frozen, so the forms that the reference accepts are settled behind its back.
        _check_switches(self, _SWITCHES)
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
            object.__setattr__(self, name, int(value))  # numpy's, so that all are of one type
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                "size['shortest_edge'] (min_pixels) must be at most size['longest_edge'] "
                f"(max_pixels), got {self.min_pixels} and {self.max_pixels}"
            )
        factor = self.rescale_factor
        if not isinstance(factor, Real) or not math.isfinite(factor) or factor <= 0:
            raise ValueError(f"rescale_factor must be a positive number, got {factor!r}")
        object.__setattr__(self, "resample", _parse_resample(self.resample))
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, _parse_per_channel(name, getattr(self, name)))
        for name in ("input_data_format", "return_tensors"):
            value = getattr(self, name)
            object.__setattr__(self, name, getattr(value, "value", value))  # enums of strings
        _check_choice("input_data_format", self.input_data_format, "channels_first, channels_last")
        _check_choice("return_tensors", self.return_tensors, "pt, np")

    @property
    def factor(self) -> int:
        """What both sides of a resized image are multiples of, in pixels."""
        return self.patch_size * self.merge_size * self.patch_expand_factor

    def updated(self, given: Mapping[str, Any]) -> Self:
        """Returns these options with others over them.

        Args:
            given: Options by the reference's names. None leaves an option as it is. ``size`` is a
                mapping, or the reference's ``SizeDict``, with ``shortest_edge`` and
                ``longest_edge``; ``min_pixels`` and ``max_pixels`` say the same at the top level,
                where the reference ignores them.

        Raises:
            ValueError: On an unknown name, on one whose effect is not to be had, and on a bad
                value; the message says what to use.
        """
        changes: dict[str, Any] = {}
        edges: dict[str, Any] = {}
        names = ("size", *(field.name for field in fields(self)))
        for name, value in given.items():
            if value is None and (name in self._fixed or name in names):
                continue
            if name in self._fixed:
                accepted, reason = self._fixed[name]
                if value not in accepted:
                    raise ValueError(f"{name}={value!r} is not supported: {reason}")
            elif name not in names:
                raise ValueError(
                    f"unknown option {name}={value!r}; the options are {', '.join(names)}"
                )
            elif name == "size":
                edges = _parse_size(value)
            else:
                changes[name] = value
        for name, wanted in edges.items():
            if changes.setdefault(name, wanted) != wanted:
                raise ValueError(
                    f"size and {name} disagree, {wanted} and {changes[name]}: give one"
                )
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class VideoOptions(ImageOptions):
    """What a video processor does to a clip; the defaults are the reference's for Glmga.

    What ``ImageOptions`` says of an image goes for every frame, except that all frames of a clip
    share the pixel budgets.

    Raises:
        ValueError: On a value that is none of the option's, showing it. The processors also refuse
            what ``VideoSampling`` does.

    Attributes:
        min_pixels: ``size["shortest_edge"]``: least frames * height * width.
        max_pixels: ``size["longest_edge"]``: most frames * height * width.
        do_sample_frames: Choose frames; their clip's metadata are needed then. If False, all count.
        fps: See ``VideoSampling``, as for the next two.
        max_frames: Most frames that are chosen.
        max_duration: Seconds.
        return_metadata: Return the metadata of the clips as well.
    """

    max_pixels: int = 28 * 28 * 2 * 55790
    do_sample_frames: bool = True
    fps: float | None = None
    max_frames: int | None = None
    max_duration: float | None = None
    return_metadata: bool = False

    _fixed: ClassVar[_Fixed] = _VIDEO_FIXED

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_switches(self, _VIDEO_SWITCHES)

    def sampling(self, family: VideoFamily) -> VideoSampling:
        """Which frames are chosen of a clip, by the rule of ``family``.

        Raises:
            ValueError: On what ``VideoSampling`` refuses.
        """
        return VideoSampling(
            family=family,
            fps=self.fps,
            max_frames=self.max_frames,
            max_duration=self.max_duration,
            temporal_patch_size=self.temporal_patch_size,
        )


def _check_switches(options: ImageOptions, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(value := getattr(options, name), bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")


def _parse_size(value: Any) -> dict[str, Any]:
    try:
        edges = dict(
            value
        )  # The reference's SizeDict is no mapping, but it gives the pairs of one.
    except (TypeError, ValueError):
        edges = {}
    if edges.keys() != {"shortest_edge", "longest_edge"} or None in edges.values():
        raise ValueError(
            "size needs 'shortest_edge' and 'longest_edge', the least and most pixels of all "
            f"frames together, got {value!r}"
        )
    return {"min_pixels": edges["shortest_edge"], "max_pixels": edges["longest_edge"]}


def _parse_resample(value: Any) -> Image.Resampling:
    name = getattr(value, "value", value)  # torchvision's enum has names for values
    try:
        if isinstance(name, str):
            # The reference's torch classes take torchvision's exact one for Pillow's NEAREST.
            return Image.Resampling[name.upper().removesuffix("-EXACT")]
        return Image.Resampling(name)
    except (KeyError, ValueError):
        filters = ", ".join(f"{item.value} ({item.name})" for item in Image.Resampling)
        raise ValueError(f"resample must be one of {filters}; got {value!r}") from None


def _parse_per_channel(name: str, value: Any) -> tuple[float, float, float]:
    values = tuple(value) if isinstance(value, Iterable) else (value,) * 3
    finite = all(isinstance(item, Real) and math.isfinite(item) for item in values)
    if len(values) != 3 or not finite or (name == "image_std" and 0 in values):
        kind = "finite and not 0" if name == "image_std" else "finite"
        raise ValueError(f"{name} must be one number or three, {kind}; got {value!r}")
    return cast("tuple[float, float, float]", tuple(float(item) for item in values))


def _check_choice(name: str, value: object, choices: str) -> None:
    if value is not None and value not in choices.split(", "):
        raise ValueError(f"{name} must be one of {choices}, or None; got {value!r}")


FAMILY_VIDEO_OPTIONS: Final[dict[VideoFamily, VideoOptions]] = {
    "glmga": VideoOptions(),
    "glm46v": VideoOptions(max_pixels=28 * 28 * 2 * 30000),
    "glm4v": VideoOptions(max_pixels=28 * 28 * 2 * 30000),
}
"""What a family's video class has where nothing is given."""
