"""What is read of a checkpoint on this machine: files of its folder. No torch, no fsspec."""

import errno
import stat
from pathlib import Path

from encoder.describe import shown
from encoder.json_text import MAX_JSON_BYTES


def check_local_file(path: Path) -> int:
    """Returns the size in bytes of a file that belongs to the folder it is in.

    Its folder may be a symbolic link, and it may be one to a file in the folder. In a cache of
    Hugging Face's, whose `models--org--name/snapshots/REV/` hold links to `blobs/`, it may be one
    to anything in `models--org--name/`.

    Raises:
        ValueError: It is a pipe, a device or a folder, or leads elsewhere; one line without the
            path.
        OSError: It is not there, or cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link to itself") from error
        raise
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    target = path.resolve()
    if not target.is_relative_to(_root(path.parent.resolve())):
        raise ValueError(
            f"a symbolic link out of its folder, to {shown(str(target))}, is not followed: put "
            "the file itself there, or name the folder that has all of them"
        )
    return found.st_size


def read_local_json(path: Path) -> bytes:
    """Reads a file that is to be JSON.

    Raises:
        ValueError: As `check_local_file`, or it is too large.
        OSError: As `check_local_file`.
    """
    check_json_size(check_local_file(path))
    with path.open("rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    check_json_size(len(raw))  # Not every file is as large as it says.
    return raw


def check_json_size(size: int) -> None:
    """Raises a ValueError, one line, if a file is too large to be JSON that is read."""
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes, over {MAX_JSON_BYTES:,}, the most supported")


def _root(folder: Path) -> Path:
    """The outermost folder that files of a checkpoint in `folder` may lie in."""
    for snapshots in (parent for parent in folder.parents if parent.name == "snapshots"):
        if snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return folder
