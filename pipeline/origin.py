"""Where an encoder comes from, and whether its files are still those that were read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import fsspec

from encoder import Glm4vVisionConfig, VisionTensors
from pipeline.location import join
from pipeline.processor_files import Brought
from processors import pretrained

Versions = Mapping[str, str | None]
"""By a file's name, what another file of that name would not have; None where there is none."""

_WHOLE: Final = "model.safetensors"  # Read before any shards.
# What the file systems of fsspec tell of a file's content, in the order of preference.
_MARKS: Final = ("ETag", "etag", "md5Hash", "mtime", "LastModified")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder by its content: `digest` is of the seed, or of every vision tensor."""

    asked: str
    """As `--encoder` named it; a local path is absolute."""
    location: str
    """What that came to: of a `hf://` repository, one commit."""
    digest: str
    random: bool
    config: Glm4vVisionConfig
    brought: Brought = field(default_factory=Brought)
    versions: Versions = field(default_factory=dict)


def absolute(location: str) -> str:
    """One name of a place for all that fsspec takes for it, in whatever folder."""
    local = location.removeprefix("file://")
    if "://" in local:
        return local.rstrip("/")
    return os.path.abspath(os.path.expanduser(local))  # noqa: PTH100, PTH111 (as fsspec does)


def versions_of(tensors: VisionTensors) -> Versions:
    """What tells the files of a checkpoint from later ones; nothing of a commit, which stays."""
    location = tensors.location
    if location.startswith("hf://") and not location.startswith("hf://buckets/"):
        return {}
    shards = {PurePosixPath(entry.path).name for entry in tensors.entries.values()}
    others = () if location.endswith(".safetensors") else (_WHOLE, f"{_WHOLE}.index.json")
    return _look(location, sorted({*shards, *others, "config.json", *pretrained.FILES}))


def has_changed(encoder: Encoder, output: str) -> bool:
    """Whether a checkpoint's files are others now than those that were read.

    One that is gone, or cannot be looked at, has not: the output keeps what is needed of it, which
    standard error is told.

    Args:
        encoder: That of a checkpoint.
        output: Location of the output that keeps it.
    """
    if not encoder.versions:
        return False
    try:
        now = _look(encoder.location, encoder.versions)
    except Exception as error:  # Every file system of fsspec's has exceptions of its own.
        reason = f"cannot be looked at ({' '.join(str(error).split()) or type(error).__name__})"
    else:
        weights = [n for n, was in encoder.versions.items() if was and n.endswith(".safetensors")]
        if now.get(_WHOLE) or all(now[name] for name in weights):
            return now != encoder.versions
        reason = "is gone"
    print(
        f"patchflow: --encoder {encoder.location} {reason}: going on with the copy that {output} "
        "keeps of it",
        file=sys.stderr,
    )
    return False


def _look(location: str, names: Iterable[str]) -> Versions:
    fs, path = fsspec.core.url_to_fs(location)
    fs.invalidate_cache()
    folder = str(PurePosixPath(path).parent) if path.endswith(".safetensors") else path
    return {name: _version(fs, join(folder, name)) for name in names}


def _version(fs: Any, path: str) -> str | None:
    try:
        found = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    mark = next((str(found[name]) for name in _MARKS if found.get(name) is not None), "")
    return f"{found.get('size')} {mark}"
