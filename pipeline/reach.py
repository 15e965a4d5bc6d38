"""Where items may lie: below the roots of the inputs, also where symbolic links lead."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pipeline.location import local_path


def real_path(path: str) -> str:
    """`path` without symbolic links; as it is, where they are replaced under our eyes."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Locations below which items may lie, and whether symbolic links may lead elsewhere."""

    roots: tuple[str, ...]
    """Canonical; each one a folder or prefix, or an item itself."""
    follow_links: bool = False

    def covers(self, uri: str) -> bool:
        """Whether a canonical URI is a root or below one: letter for letter, up to a `/`."""
        return local_path(uri) in self._named

    def holds(self, path: str) -> bool:
        """Whether items may be read from a local path that holds no symbolic links."""
        return self.follow_links or path in self._real

    @cached_property
    def _named(self) -> _Places:
        return _Places(map(local_path, self.roots))

    @cached_property
    def _real(self) -> _Places:
        local = (local_path(root) for root in self.roots if not root.startswith("s3://"))
        return _Places(map(real_path, local))


@dataclass
class Links:
    """What a listing makes of symbolic links, and how many it left out as they lead elsewhere."""

    reach: Reach
    left_out: int = 0


class _Places:
    """Names, and all that is below them: as many as a shell makes of `*`, asked for often."""

    def __init__(self, places: Iterable[str]) -> None:
        self._exact = frozenset(places)
        self._below: list[str] = []
        for prefix in sorted({p if p.endswith("/") else f"{p}/" for p in self._exact}):
            # None begins another one, so that what precedes a name is all that can begin it.
            if not self._below or not prefix.startswith(self._below[-1]):
                self._below.append(prefix)

    def __contains__(self, name: str) -> bool:
        if name in self._exact:
            return True
        at = bisect_right(self._below, name)
        return at > 0 and name.startswith(self._below[at - 1])
