"""The files below a local folder, depth first, each folder by name, without hidden ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator

from pipeline.reach import Links, real_path


def walk(folder: str, links: Links | None = None) -> Iterator[os.DirEntry[str]]:
    """Every regular file, and every link to one that may be followed.

    Folders that links lead to come last, and no folder comes twice: loops end, and what a folder
    holds is called by its own name, whatever links to it.

    Args:
        folder: An absolute path.
        links: Which links to follow; None takes those to files, wherever they lead.

    Raises:
        OSError: A folder cannot be read.
    """
    follow = links is not None and links.reach.follow_links
    waiting, seen = deque([folder]), set[tuple[int, int]]()
    while waiting:
        stack = [_entries(waiting.popleft(), seen if follow else None)]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif entry.is_dir(follow_symlinks=False):
                stack.append(_entries(entry.path, seen if follow else None))
            elif not entry.is_symlink() or links is None or follow or _stays(entry, links):
                # A link's end may be a loop, or closed to us: these say False to both.
                if os.path.isfile(entry.path):  # noqa: PTH113
                    yield entry
                elif follow and os.path.isdir(entry.path):  # noqa: PTH112
                    waiting.append(entry.path)


def _entries(folder: str, seen: set[tuple[int, int]] | None) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, by name; nothing where it was seen before."""
    if seen is not None:
        found = os.stat(folder)  # noqa: PTH116 (names come as `scandir` gives them)
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
    # Whole, so that no descriptor stays open for each folder on the way down.
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.name.startswith("."):
            yield entry


def _stays(link: os.DirEntry[str], links: Links) -> bool:
    """Whether a link leads to where items may lie; counts it where it leads elsewhere."""
    if links.reach.holds(real_path(link.path)):
        return True
    links.left_out += os.path.exists(link.path)  # noqa: PTH110
    return False
