"""What a checkpoint's files say of its processors, as far as a run can go by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import fsspec

from encoder import CheckpointError
from encoder.safetensors_file import read_json_file
from pipeline.errors import PatchflowError, StorageError, UsageError
from pipeline.location import join
from processors import ImageOptions, VideoFamily, VideoOptions, pretrained
from processors.pretrained import ProcessorFile

# What a run always does as the family does it by default.
_FIXED: Final = (
    *("do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames"),
    *("resample", "rescale_factor", "image_mean", "image_std"),
)
# What to say where not both are there: by whether images' is, and clips'.
_ABSENT: Final = {
    (False, False): ("processors", "images and clips"),
    (False, True): ("image processor", "images"),
    (True, False): ("video processor", "clips"),
}


@dataclass(frozen=True, kw_only=True)
class Brought:
    """A checkpoint's options for its processors, by the reference's names; none by default.

    `family` is whose rules clips are sampled by.
    """

    image: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    family: VideoFamily = "glmga"


@contextmanager
def reading(location: str, what: str = "--encoder") -> Iterator[None]:
    """Says in a line what is wrong with a checkpoint, or with the storage that it lies on.

    Args:
        location: Where it is.
        what: What the line calls it.

    Raises:
        UsageError: It is no checkpoint that can be used.
        StorageError: Its storage failed.
    """
    try:
        yield
    except CheckpointError as error:
        raise UsageError(f"{what} {error}") from error
    except PatchflowError:
        raise
    except Exception as error:  # Every file system of fsspec's has exceptions of its own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"{what} {location}: {reason}") from error


def brought_options(checkpoint: str) -> Brought:
    """Reads a checkpoint's processor files; says on standard error what they do not describe.

    Raises:
        UsageError: They are no processors of the family's, or do what this version cannot.
        StorageError: Storage failed.
    """
    with reading(checkpoint):
        folder = folder_of(checkpoint)
        files = read_files(folder)
    try:
        image = pretrained.find_processor("image", folder, files.get)
        video = pretrained.find_processor("video", folder, files.get)
        family = _family(image, video)
        if image is None or video is None:
            absent, items = _ABSENT[image is not None, video is not None]
            print(
                f"patchflow: {folder} describes no {absent}: {items} take {family}'s defaults",
                file=sys.stderr,
            )
        return Brought(
            image=_options(image, family, ImageOptions()),
            video=_options(video, family, VideoOptions()),
            family=family,
        )
    except ValueError as error:
        raise UsageError(f"--encoder {error}") from error


def folder_of(checkpoint: str) -> str:
    """Where a checkpoint's other files lie, if it is its one file of weights that is named."""
    if not checkpoint.endswith(".safetensors"):
        return checkpoint
    folder, slash, _ = checkpoint.rpartition("/")
    if not slash:
        return "."
    return folder if folder and folder[-1] not in ":/" else f"{folder}/"


def read_files(folder: str) -> dict[str, bytes]:
    """The processor files of a checkpoint's folder, those that are there.

    Raises:
        CheckpointError: One is none of the folder's own, or too large.
        Exception: Storage's own, where it fails.
    """
    fs, path = fsspec.core.url_to_fs(folder)
    files = {}
    for name in pretrained.FILES:
        # `exists` would not do: on some file systems it is False when storage fails.
        with suppress(FileNotFoundError):
            files[name] = read_json_file(fs, join(path, name))
    return files


def _family(image: ProcessorFile | None, video: ProcessorFile | None) -> VideoFamily:
    """Whose rules clips are sampled by: a processor's type says it, never the model's."""
    said = (file.family for file in (video, image) if file is not None)
    return next((family for family in said if family is not None), Brought().family)


def _options(
    file: ProcessorFile | None, family: VideoFamily, defaults: ImageOptions
) -> dict[str, Any]:
    """What a file says, if a run can do it.

    Raises:
        ValueError: An option cannot be, or a run cannot do it.
    """
    if file is None:
        return {}
    options = file.options(file.family or family)
    try:
        told = defaults.updated(options)
    except ValueError as error:
        raise ValueError(f"{file.place}: {error!s:.500}") from error
    for name in _FIXED:
        if name in options and getattr(told, name) != getattr(defaults, name):
            raise ValueError(
                f"{file.place}: {name} {json.dumps(options[name]):.80} is not supported, "
                f"only the family's {json.dumps(getattr(defaults, name))}"
            )
    return options
