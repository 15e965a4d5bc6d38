"""What a checkpoint's files say of its processors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import fsspec

from encoder import CheckpointError
from pipeline.errors import PatchflowError, StorageError, UsageError
from pipeline.location import join
from processors import ImageOptions, VideoFamily

FAMILIES: Final[dict[str, VideoFamily]] = {"Glmga": "glmga", "Glm46V": "glm46v", "Glm4v": "glm4v"}
"""By the name of a processor's class, less `ImageProcessor` or `VideoProcessor`, `Fast`, `Pil`."""

# Where a checkpoint describes its processors, nested or not; the first one that is there counts.
_FILES: Final = {
    "image_processor": ("processor_config.json", "preprocessor_config.json"),
    "video_processor": ("processor_config.json", "video_preprocessor_config.json"),
}
FILE_NAMES: Final = tuple(dict.fromkeys(name for names in _FILES.values() for name in names))
_SWITCHES: Final = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames")


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A checkpoint's options for its processors, by the reference's names; none by default.

    `family` is whose rules clips are sampled by.
    """

    image: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    family: VideoFamily = "glmga"


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Says in a line what is wrong with a checkpoint, or with the storage that it lies on.

    Raises:
        UsageError: It is no checkpoint that can be used.
        StorageError: Its storage failed.
    """
    try:
        yield
    except CheckpointError as error:
        raise UsageError(f"--encoder {error}") from error
    except PatchflowError:
        raise
    except Exception as error:  # Every file system of fsspec's has exceptions of its own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"--encoder {location}: {reason}") from error


def brought_options(checkpoint: str) -> Brought:
    """Reads a checkpoint's processor files; says on standard error where it has none for clips.

    Raises:
        UsageError: They are no processors of the family's, or do what this version cannot.
        StorageError: Storage failed.
    """
    with reading(checkpoint):
        image, video = (_brought(checkpoint, kind) for kind in _FILES)
    return Brought(image=image, video=video, family=_family(checkpoint, image, video))


def _family(checkpoint: str, image: dict[str, Any], video: dict[str, Any]) -> VideoFamily:
    """Whose rules clips are sampled by: the processor's type says it, never the model's.

    Raises:
        UsageError: It is another family's, or the image processor is.
    """
    family = Brought().family
    # The video processor's is the one that counts, if there is one.
    for kind in (image.get("image_processor_type"), video.get("video_processor_type")):
        if kind is None:
            continue
        match = re.fullmatch(r"(\w+?)(Image|Video)Processor(Fast|Pil)?", str(kind))
        if match is None or match[1] not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise UsageError(f"--encoder {checkpoint}: {kind} is no processor of {known}")
        family = FAMILIES[match[1]]
    if not video:
        print(
            f"patchflow: {checkpoint} brings no video processor: clips are sampled as by {family}",
            file=sys.stderr,
        )
    return family


def _brought(checkpoint: str, kind: str) -> dict[str, Any]:
    """A checkpoint's options for its image or video processor; none where it has no such file."""
    fs, path = fsspec.core.url_to_fs(checkpoint)
    for name in _FILES[kind]:
        file = join(path, name)
        if path.endswith(".safetensors") or not fs.exists(file):
            continue
        place = join(checkpoint, name)
        try:
            raw = json.loads(fs.cat_file(file))
            found: dict[str, Any] = raw.get(kind) if name == _FILES[kind][0] else raw
            if found is not None:
                _check_processor(found, place)
                return found
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"--encoder {place}: {error}") from error
    return {}


def _check_processor(options: dict[str, Any], place: str) -> None:
    family = ImageOptions()
    for name in ("image_mean", "image_std"):
        if name in options and tuple(options[name]) != getattr(family, name):
            raise UsageError(f"{place}: {name} {options[name]} is not the family's")
    for name in _SWITCHES:
        if options.get(name) is False:
            raise UsageError(f"{place}: {name} false is not supported")
