"""The decoder process: files from shared memory, frames back, one file after the other."""

from __future__ import annotations

import json
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from processors.errors import DecodeError
from processors.media import Media, MediaOptions
from processors.orientation import Room
from processors.sandbox.lockdown import lock_down
from processors.sandbox.memory import Region
from processors.sandbox.protocol import (
    BUFFERS,
    CHILD_SOCKET,
    OUT_OF_MEMORY_STATUS,
    RELEASE,
    SLOTS,
    Reply,
    Start,
    Work,
    promised_frames,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Open = Callable[[memoryview, MediaOptions, Room], Media]


def run_child(open_file: Open, start: Start, fds: list[int], *, template: int) -> None:
    """Locks this process down and serves until the parent hangs up.

    Args:
        open_file: ``open_media``.
        start: What the parent decided.
        fds: The socket, the memory that files come in and that frames go out by.
        template: The process that forked this one.
    """
    buffers = Region(fds[1], BUFFERS, mmap.ACCESS_READ)
    slots = Region(fds[2], SLOTS)
    # Whatever else this process inherited is closed, its template's socket and the memory's
    # descriptors included; and what a file makes a library print goes nowhere.
    os.dup2(fds[0], CHILD_SOCKET)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(CHILD_SOCKET):
        os.dup2(nowhere, standard)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    os.closerange(CHILD_SOCKET + 1, highest + 1)
    parent = socket.socket(fileno=CHILD_SOCKET)
    measures = lock_down(start.memory_bytes, template=template)
    parent.send(json.dumps(measures).encode())
    _Server(parent, buffers, slots, start.options, open_file).run()


class _Server:
    def __init__(
        self,
        parent: socket.socket,
        buffers: Region,
        slots: Region,
        options: MediaOptions,
        open_file: Open,
    ) -> None:
        self._parent = parent
        self._buffers = buffers
        self._slots = slots
        self._options = options
        self._open = open_file
        self._waiting: deque[Work] = deque()
        self._free_slots = SLOTS
        self._frames_sent = 0

    def run(self) -> None:
        while True:
            while not self._waiting:
                self._receive()
            work = self._waiting.popleft()
            try:
                self._decode(work)
            except MemoryError:
                os._exit(OUT_OF_MEMORY_STATUS)
            except DecodeError as error:
                if error.code == "decoder_out_of_memory":
                    os._exit(OUT_OF_MEMORY_STATUS)
                self._send(Reply(item=work.item, error=error))
            except Exception as error:
                # No decoder of ours means to raise anything else. The parent replaces this process.
                message = f"{type(error).__name__}: {error}"
                failure = DecodeError("decoder_crashed", message)
                self._send(Reply(item=work.item, error=failure))

    def _receive(self) -> None:
        message = self._parent.recv(64)
        if not message:
            os._exit(0)
        if message == RELEASE:
            self._free_slots += 1
        else:
            self._waiting.append(Work.from_bytes(message))

    def _decode(self, work: Work) -> None:
        media = self._open(self._buffers.view(work.buffer, work.size), self._options, self._room)
        for number in range(promised_frames(media.info)):
            frame = next(media.frames)
            self._place(frame)
            info = None if number else media.info
            self._send(Reply(item=work.item, info=info, frame=frame.shape[:2]))

    def _place(self, frame: NDArray[np.uint8]) -> None:
        height, width, _ = frame.shape
        slot = self._room(height, width)
        if not np.may_share_memory(slot, frame):
            np.copyto(slot, frame, casting="no")
        self._free_slots -= 1
        self._frames_sent += 1

    def _room(self, height: int, width: int) -> NDArray[np.uint8]:
        """Where the next frame goes, once that is free."""
        while not self._free_slots:
            self._receive()
        return self._slots.frame(self._frames_sent % SLOTS, height, width)

    def _send(self, reply: Reply) -> None:
        self._parent.send(reply.to_bytes())
