"""The files below a local folder, depth first, each folder by name, without hidden ones."""

from __future__ import annotations

import heapq
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO

from pipeline.reach import Links, real_path

# Of one folder, as many names are sorted in memory; what is more waits in files.
_MOST_NAMES = 2**16


def walk(folder: str, links: Links | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file, and every link to one that may be followed, with the file's status.

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
        stack = [_paths(waiting.popleft(), seen if follow else None)]
        while stack:
            path = next(stack[-1], None)
            if path is None:
                stack.pop()
                continue
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue  # It vanished while it was listed, and was never there.
            if stat.S_ISDIR(found.st_mode):
                stack.append(_paths(path, seen if follow else None))
                continue
            if stat.S_ISLNK(found.st_mode) and (links is None or follow or _stays(path, links)):
                try:
                    found = os.stat(path)  # noqa: PTH116 (names come as `scandir` gives them)
                except OSError:
                    continue  # A link's end may be a loop, or closed to us.
                if follow and stat.S_ISDIR(found.st_mode):
                    waiting.append(path)
            if stat.S_ISREG(found.st_mode):
                yield path, found


def _paths(folder: str, seen: set[tuple[int, int]] | None) -> Iterator[str]:
    """What a folder holds, by name; nothing where it was seen before."""
    if seen is not None:
        found = os.stat(folder)  # noqa: PTH116
        if (found.st_dev, found.st_ino) in seen:
            return
        seen.add((found.st_dev, found.st_ino))
    # To its end, so that no descriptor stays open for each folder on the way down.
    with os.scandir(folder) as entries:
        names = _in_order(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        yield os.path.join(folder, name)  # noqa: PTH118


def _in_order(names: Iterator[str]) -> Iterator[str]:
    """Names of files, sorted."""
    runs: list[Iterable[str]] = []
    while run := sorted(islice(names, _MOST_NAMES)):
        runs.append(run if len(run) < _MOST_NAMES else _stored(run))
    return heapq.merge(*runs)


def _stored(names: list[str]) -> Iterator[str]:
    """The same names, out of a file that is gone with them."""
    file = tempfile.TemporaryFile(prefix="patchflow-names-")  # noqa: SIM115 (`_lines` closes it)
    # A name may hold a line's end, but no slash.
    file.writelines(os.fsencode(name.replace("\n", "/")) + b"\n" for name in names)
    file.seek(0)
    return _lines(file)


def _lines(file: IO[bytes]) -> Iterator[str]:
    with file:
        for line in file:
            yield os.fsdecode(line[:-1]).replace("/", "\n")


def _stays(link: str, links: Links) -> bool:
    """Whether a link leads to where items may lie; counts it where it leads elsewhere."""
    if links.reach.holds(real_path(link)):
        return True
    links.left_out += os.path.exists(link)  # noqa: PTH110
    return False
