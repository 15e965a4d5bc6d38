"""Memory that a decoder child and its parent share: files go in, frames come out.

Both sizes are the largest there can ever be, reserved once and never changed: pages exist only
where something was written. Sealed like this, memory cannot shrink under the parent, which a child
could otherwise use to kill it (``SIGBUS``).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

from processors.sandbox.protocol import BUFFERS, SLOTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pages in which to put an ordinary photo stay, so that the next one finds them there.
_KEPT_BYTES: Final = 32 * 2**20


class Region:
    """Several equal parts of one shared mapping.

    Args:
        fd: Sealed memory; it is mapped, not kept.
        parts: How many.
        access: ``mmap.ACCESS_WRITE`` or ``mmap.ACCESS_READ``.
    """

    def __init__(self, fd: int, parts: int, access: int = mmap.ACCESS_WRITE) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size, access=access)
        self._part_bytes = len(self._map) // parts

    def view(self, part: int, size: int) -> memoryview:
        """The first bytes of a part; writable where the mapping is."""
        start = part * self._part_bytes
        return memoryview(self._map)[start : start + size]

    def frame(self, part: int, height: int, width: int) -> NDArray[np.uint8]:
        """The start of a part as uint8 ``[height, width, 3]``."""
        pixels = np.frombuffer(self.view(part, 3 * height * width), np.uint8)
        return pixels.reshape(height, width, 3)

    def trim(self, part: int, written: int | None = None) -> None:
        """Gives back what a large item left in a part; what it held is lost.

        Args:
            part: Which.
            written: Bytes at its start that may have been written to; None for all of it.
        """
        end = self._part_bytes if written is None else _pages(written)
        if end > _KEPT_BYTES:
            start = part * self._part_bytes
            self._map.madvise(mmap.MADV_REMOVE, start + _KEPT_BYTES, end - _KEPT_BYTES)

    def close(self) -> None:
        """Unmaps it, unless a view of it is held: then it goes with that."""
        with suppress(BufferError):
            self._map.close()


class SharedMemory:
    """The parent's side, which owns the memory.

    Attributes:
        buffers: ``BUFFERS`` files.
        slots: ``SLOTS`` frames.
        fds: Descriptors for a child: of the files, read-only, and of the frames.
    """

    def __init__(self, *, max_file_bytes: int, max_pixels: int) -> None:
        files = _sealed("patchflow-files", BUFFERS * _pages(max_file_bytes))
        frames = _sealed("patchflow-frames", SLOTS * _pages(3 * max_pixels))
        self.buffers = Region(files, BUFFERS)
        self.slots = Region(frames, SLOTS)
        self.fds = [os.open(f"/proc/self/fd/{files}", os.O_RDONLY | os.O_CLOEXEC), frames]
        os.close(files)

    def close(self) -> None:
        """Lets go of it, short of what is still looked at."""
        self.buffers.close()
        self.slots.close()
        while self.fds:
            os.close(self.fds.pop())


def _sealed(name: str, size: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _pages(size: int) -> int:
    return -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
