"""Files of a block's rows, read ahead of whoever decodes them, within a bound of bytes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.blame import fetch_item
from pipeline.budgets import FETCHED_BYTES
from pipeline.errors import ItemError
from pipeline.objects import Fetched
from pipeline.reach import Reach
from pipeline.storage import storage_for

# Enough requests in flight to hide an object store's latency behind decoding.
_FETCHERS = 8
# Files under way, at first and at most: where they come at once, threads only take Python's lock
# from each other. None, after a while: then whoever wants a file reads it, for half the CPU.
_FEWEST, _MOST = 2, 2 * _FETCHERS
# A file that is waited for longer than this is late: but a block's first, if a thread reads it, as
# there was nothing to ask for it ahead of.
_PROMPT_S = 0.002
# After so many more that were not, perhaps fewer will do.
_PROMPT_FILES = 128
# A late file counts as much as so many that were not, and a few in short order ask for more: one
# now and then, from a disk most of which is in memory, does not make the others worth a thread.
_LATE_FILES = 32
# Of a file whose manifest says no size: a few of them fill the bound.
_GUESSED_BYTES = FETCHED_BYTES // 4

File = Future[list[Fetched]]
"""A file, in a list that whoever decodes it empties."""


@dataclass(frozen=True, kw_only=True)
class _Fetching:
    """One row's file on its way."""

    media_type: str | None
    cost: int
    """Bytes that it is taken for; no more of them are read ahead."""
    read: Callable[[int], list[Fetched]]
    """Reads a file of so many bytes or fewer."""
    file: File


class Fetcher:
    """Reads files, for calls that may overlap: few ahead or none, and more while they come late.

    Args:
        max_bytes: Of a file; a larger one is `too_large`.
        reach: Where files may lie.
        decoders: Decoder processes that are to be kept at work.
    """

    def __init__(self, *, max_bytes: int, reach: Reach, decoders: int = 1) -> None:
        self._max_bytes, self._reach = max_bytes, reach
        self._threads = ThreadPoolExecutor(decoders * _FETCHERS, thread_name_prefix="fetch")
        self._ahead, self._lateness = _FEWEST, 0

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown()

    def files(self, rows: pa.Table) -> Iterator[tuple[str | None, File]]:
        """Media type and file of every manifest row in order, the next ones on their way."""
        waiting: deque[_Fetching] = deque()
        held = 0
        asked_ahead = False  # Nothing was there to hide the first one's time behind.
        columns = ("uri", "version", "size_bytes", "media_type")
        for uri, version, size, kind in zip(
            *(rows[name].to_pylist() for name in columns), strict=True
        ):
            cost = min(size or _GUESSED_BYTES, self._max_bytes)
            while waiting and (held + cost > FETCHED_BYTES or len(waiting) >= self._ahead):
                yield self._due(waiting[0], asked_ahead)
                asked_ahead = True
                held -= waiting.popleft().cost
            read = partial(self._read, uri, version)
            file = self._threads.submit(read, cost) if self._ahead else self._read_now(read, cost)
            waiting.append(_Fetching(media_type=kind, cost=cost, read=read, file=file))
            held += cost
        while waiting:
            yield self._due(waiting.popleft(), asked_ahead)
            asked_ahead = True

    def _due(self, next_one: _Fetching, asked_ahead: bool) -> tuple[str | None, File]:
        """A file whose turn it is: one larger than its manifest says is read now."""
        file = next_one.file
        if asked_ahead:
            self._learn(late=not file.done() and not wait([file], _PROMPT_S).done)
        error = file.exception() if next_one.cost < self._max_bytes else None
        if isinstance(error, ItemError) and error.code == "too_large":
            file = self._threads.submit(next_one.read, self._max_bytes)
        return next_one.media_type, file

    def _read_now(self, read: Callable[[int], list[Fetched]], most: int) -> File:
        file: File = Future()
        began = time.monotonic()
        try:
            file.set_result(read(most))
        except Exception as error:  # As a thread would: whoever takes the file raises it.
            file.set_exception(error)
        if time.monotonic() > began + _PROMPT_S:
            self._learn(late=True)
        try:
            return file
        finally:
            del file  # What was raised holds on to this frame, and the file to what was raised.

    def _learn(self, *, late: bool) -> None:
        self._lateness += _LATE_FILES if late else -1
        if self._lateness >= 2 * _LATE_FILES:
            self._ahead, self._lateness = min(max(2 * self._ahead, _FEWEST), _MOST), 0
        elif self._lateness <= -_PROMPT_FILES:
            # Never one: a thread would read what is waited for at once.
            self._ahead = self._ahead // 2 if self._ahead > _FEWEST else 0
            self._lateness = 0

    def _read(self, uri: str, version: str | None, most: int) -> list[Fetched]:
        found = fetch_item(
            storage_for(uri), uri, version=version, max_bytes=most, reach=self._reach
        )
        return [found]
