"""A file and servers that nobody is to touch, and that tell whether somebody did."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from typing import Self

_IN_ACCESS, _IN_OPEN = 1, 32

_libc = ctypes.CDLL(None, use_errno=True)


class Canaries:
    """A file that is watched by the kernel; one port of the loopback, for TCP and for UDP.

    Attributes:
        file: The file's path.
        port: The port, as ``127.0.0.1:9``.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "canary.ts"
        self.file.write_bytes(b"G" + bytes(187))
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._udp = socket.socket(type=socket.SOCK_DGRAM)
        self._udp.bind(self._tcp.getsockname())
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        path = str(self.file).encode()
        assert _libc.inotify_add_watch(self._watch, path, _IN_ACCESS | _IN_OPEN) > 0
        for each in (self._tcp, self._udp):
            each.setblocking(False)
        self.port = f"127.0.0.1:{self._tcp.getsockname()[1]}"

    def touched(self) -> list[str]:
        """What was, since it was asked for the last time."""
        found = []
        for name, look in {
            "file": lambda: os.read(self._watch, 4096),
            "tcp": self._tcp.accept,
            "udp": lambda: self._udp.recv(4096),
        }.items():
            try:
                seen = look()
            except BlockingIOError:
                continue
            found.append(name)
            if name == "tcp":
                seen[0].close()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._watch)
        self._tcp.close()
        self._udp.close()
