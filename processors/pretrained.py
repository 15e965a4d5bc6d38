"""What a checkpoint's files say of its processors, in every layout that there is.

Nothing here needs torch or knows where a checkpoint lies: whoever asks brings a way to read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from processors.options import NO_EFFECT, SWITCHES, ImageOptions, VideoOptions
from processors.sampling import VideoFamily

Kind = Literal["image", "video"]

Read = Callable[[str], bytes | None]
"""Gives the content of a checkpoint's file by its name, None where there is no such file."""

FAMILIES: Final[dict[str, VideoFamily]] = {"Glmga": "glmga", "Glm46V": "glm46v", "Glm4v": "glm4v"}
"""By the name of a processor's class, less `ImageProcessor` or `VideoProcessor`, `Fast`, `Pil`."""

_NESTED: Final = "processor_config.json"
_FLAT: Final[dict[Kind, str]] = {
    "image": "preprocessor_config.json",
    "video": "video_preprocessor_config.json",
}
FILES: Final = (_NESTED, *_FLAT.values())
"""Every name that a reader is asked for."""

MAX_FILE_BYTES: Final = 2**20
"""A larger file is refused; published ones have some 1 KB."""

# What the files hold beside options. Names that begin with an underscore are more of it.
_BOOKKEEPING: Final = frozenset(
    {
        "auto_map",
        "feature_extractor_type",
        "image_processor_type",
        "image_seq_length",
        "processor_class",
        "transformers_version",
        "video_metadata",
        "video_processor_type",
    }
)
# Options that the reference's class of a family never looks at, though its files may have them.
_NOT_THE_FAMILYS: Final[dict[VideoFamily, frozenset[str]]] = {
    "glmga": frozenset({"max_duration"}),
    "glm46v": frozenset({"fps", "max_frames", "max_duration", "patch_expand_factor"}),
    "glm4v": frozenset({"max_frames", "patch_expand_factor"}),
}
_OF_CLIPS: Final = frozenset(
    {field.name for field in fields(VideoOptions)} - {field.name for field in fields(ImageOptions)}
)


@dataclass(frozen=True, kw_only=True)
class ProcessorFile:
    """A processor as its checkpoint describes it.

    Attributes:
        kind: Whether it is for images or for clips.
        place: The file, for messages.
        family: Whose class its type names; None where it has no type.
        content: Everything that is said, by the reference's names.
    """

    kind: Kind
    place: str
    family: VideoFamily | None
    content: Mapping[str, Any]

    def options(self, family: VideoFamily) -> dict[str, Any]:
        """Returns what the reference's class of that family goes by, and what nobody knows.

        Left out are bookkeeping, options without effect in the family, and ``min_pixels`` and
        ``max_pixels`` beside the ``size`` that overrules them. Null turns a switch off, as in the
        reference, and is left out elsewhere.
        """
        ignored = _BOOKKEEPING | NO_EFFECT | _NOT_THE_FAMILYS[family]
        if self.kind == "image":
            ignored |= _OF_CLIPS
        if self.content.get("size") is not None:
            ignored |= {"min_pixels", "max_pixels"}
        switched = {
            name: False if value is None and name in SWITCHES else value
            for name, value in self.content.items()
        }
        return {
            name: value
            for name, value in switched.items()
            if value is not None and name not in ignored and not name.startswith("_")
        }


class _Processor(Protocol):
    options: Any

    def __init__(self, **options: Any) -> None: ...


_AnyProcessor = TypeVar("_AnyProcessor", bound=_Processor)


def folder_reader(folder: str | os.PathLike[str]) -> Read:
    """Reads from a folder on this machine, and what belongs to it only.

    Raises:
        ValueError: If there is no such folder, and from the reader if a file is a symbolic link
            out of it.
    """
    path = Path(folder)
    if "://" in str(folder):
        raise ValueError(
            f"{str(folder)!r} is no folder on this machine, which is what is read here; "
            "pipeline.create_complete_glm4v_vision_pipeline reads URLs"
        )
    if not path.is_dir():
        raise ValueError(f"no folder {str(folder)!r}; download the checkpoint, or correct the path")

    def read(name: str) -> bytes | None:
        file = path / name
        if not file.is_file():
            return None
        if not file.resolve().is_relative_to(_root(path.resolve())):
            raise ValueError(
                f"{file}: a symbolic link out of its folder, to {str(file.resolve())!r:.200}, is "
                "not followed: put the file itself there, or name the folder that has all of them"
            )
        with file.open("rb") as opened:
            return opened.read(MAX_FILE_BYTES + 1)

    return read


def _root(folder: Path) -> Path:
    """The outermost folder that files of a checkpoint in `folder` may lie in, as for its weights.

    In a cache of Hugging Face's, ``models--org--name/snapshots/REV/`` links to its ``blobs/``.
    """
    for snapshots in (parent for parent in folder.parents if parent.name == "snapshots"):
        if snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return folder


def find_processor(
    kind: Kind, location: str | os.PathLike[str], read: Read
) -> ProcessorFile | None:
    """Finds what a checkpoint says of its image or video processor.

    ``processor_config.json`` goes first, where it has an entry for the processor, then
    ``preprocessor_config.json`` or ``video_preprocessor_config.json``.

    Args:
        kind: Which processor.
        location: Where the checkpoint lies, for messages.
        read: Reads its files.

    Returns:
        None where no file describes it.

    Raises:
        ValueError: If a file is broken, or its processor is none of the family's; one line that
            names the file.
    """
    for name in (_NESTED, _FLAT[kind]):
        place = f"{str(location).rstrip('/')}/{name}"
        raw = read(name)
        content = None if raw is None else _parse(raw, place)
        if content is not None and name == _NESTED:
            content = content.get(f"{kind}_processor")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise ValueError(f"{place}: {kind}_processor is no object, got {content!r:.80}")
        if odd := [key for key in content if not key.isidentifier()]:
            raise ValueError(f"{place}: {odd[0]!r:.80} is no option's name")
        family = _family(kind, content, place)
        return ProcessorFile(kind=kind, place=place, family=family, content=content)
    return None


def undescribed(kind: Kind, location: str | os.PathLike[str]) -> str:
    """Says that a checkpoint describes no such processor, and where it was looked for."""
    return (
        f"{location} describes no {kind} processor: it has no {_FLAT[kind]}, "
        f"and no {kind}_processor in a {_NESTED}"
    )


def build(
    cls: type[_AnyProcessor],
    family: VideoFamily,
    found: ProcessorFile,
    overrides: Mapping[str, Any],
) -> _AnyProcessor:
    """Makes a processor of what a file says and of options over it.

    Args:
        cls: The processor's class.
        family: Whose class it is.
        found: The file, of a processor of the same kind.
        overrides: See ``updated`` in ``ImageOptions``. What they replace need not be right.

    Raises:
        ValueError: If the file's type is another family's, or an option is refused; the file is
            named where it is to blame.
    """
    require_family(found, family, found.kind)
    replaced = {name for name, value in overrides.items() if value is not None}
    options = found.options(family)
    try:
        processor = cls(**{name: options[name] for name in options.keys() - replaced})
    except ValueError as error:
        raise ValueError(f"{found.place}: {error!s:.500}") from error
    return cls(**vars(processor.options.updated(overrides)))


def require_family(found: ProcessorFile, family: VideoFamily, wanted: Kind) -> None:
    """Raises a ValueError, which says what to use, if a file's type is another family's."""
    if found.family not in (None, family):
        key = f"{found.kind}_processor_type"
        name = next(name for name, known in FAMILIES.items() if known == found.family)
        raise ValueError(
            f"{found.place}: {key} is {found.content[key]}; use {name}{wanted.title()}Processor"
        )


def without_video_file(location: str | os.PathLike[str], cls: type[object]) -> str:
    """Says that a checkpoint has no video processor and that a class's defaults are taken."""
    return (
        f"{location} describes no video processor: {cls.__name__}'s defaults are used, not the "
        "image processor's options, which transformers would take"
    )


def _parse(raw: bytes, place: str) -> dict[str, Any]:
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"{place} has over {MAX_FILE_BYTES:,} bytes, the most supported")
    try:
        content = json.loads(raw, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} holds no JSON object, got {content!r:.80}")
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _family(kind: Kind, content: Mapping[str, Any], place: str) -> VideoFamily | None:
    name = content.get(f"{kind}_processor_type")
    if name is None:
        return None
    match = re.fullmatch(rf"(\w+?){kind.title()}Processor(Fast|Pil)?", str(name))
    if match is None or match[1] not in FAMILIES:
        given = name if str(name).isidentifier() else repr(name)
        raise ValueError(f"{place}: {given:.80} is no {kind} processor of {', '.join(FAMILIES)}")
    return FAMILIES[match[1]]
