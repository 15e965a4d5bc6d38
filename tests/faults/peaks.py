"""The most memory that decoder processes, and the actors of a run, take."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass
class Held:
    """The most memory that actors of a run had at a time, in bytes: none of the object store's.

    Attributes:
        preprocess: A preprocessing actor's own.
        shared: What it shares with its decoder process.
        decoder: A decoder process's own.
        encode: An encoder actor's own.
        looks: How often there was something to look at.
    """

    preprocess: int = 0
    shared: int = 0
    decoder: int = 0
    encode: int = 0
    looks: int = 0

    def look(self, processes: Iterable[psutil.Process]) -> None:
        """Looks once; costs no more than a few milliseconds."""
        for process in processes:
            with suppress(psutil.Error, OSError):
                title = title_of(process)
                if "Preprocess" in title:
                    self.preprocess = max(self.preprocess, _own(process.pid))
                    self.shared = max(self.shared, _shared_files(process.pid))
                elif "processors.sandbox" in title:
                    self.decoder = max(self.decoder, _own(process.pid))
                elif "Encode" in title:
                    self.encode = max(self.encode, _own(process.pid))
                    self.looks += 1


def _own(pid: int) -> int:
    """What is its own of anonymous memory and, by its share in them, of libraries."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in lines}
    return sizes["Pss_Anon:"] + sizes["Pss_File:"]


def _shared_files(pid: int) -> int:
    """Pages that exist of files in memory, as many descriptors as there are of each."""
    found = {}
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if "memfd:patchflow" in str(file.readlink()):
                status = file.stat()
                found[status.st_ino] = 512 * status.st_blocks
    return sum(found.values())
