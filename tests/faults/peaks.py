"""The most memory that decoder processes take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.commands import title_of


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory that decoder processes had at a time, what they share included, in bytes."""
    peaks, stop = [0], threading.Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(0.01)
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError):
                    if "processors.sandbox" in title_of(process):
                        peaks.append(_peak_of(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _peak_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    # There is none of a process that has just ended.
    return next((1024 * int(at.split()[1]) for at in status.splitlines() if "VmHWM" in at), 0)
