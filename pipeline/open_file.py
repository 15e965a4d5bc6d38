"""Opening a local file that a stranger may have made, or may replace at any moment."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from pipeline.errors import ItemError, shown
from pipeline.reach import Reach


def open_file(path: str, reach: Reach | None = None) -> BinaryIO:
    """Opens a regular file, and nothing else: a pipe would wait, and devices act on it.

    Raises:
        ItemError: A symbolic link leads out of `reach`.
        OSError: It is no regular file, or cannot be opened.
    """
    # What is there is taken hold of, looked at, and then opened by way of that very hold: none of
    # it can be replaced in between.
    hold = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        opened = f"/proc/self/fd/{hold}"
        mode = os.fstat(hold).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")
        # Not `pathlib`, here and below, which takes as long as the kernel does.
        real = os.readlink(opened)  # noqa: PTH115
        # So the kernel calls a file that another one has taken the place of since.
        names = (real, real.removesuffix(" (deleted)"))
        if reach is not None and not any(map(reach.holds, names)):
            raise ItemError(
                "access_denied",
                f"it leads to {shown(real)}, out of the inputs' folders; --follow-links goes there",
            )
        return open(opened, "rb")  # noqa: PTH123
    finally:
        os.close(hold)
