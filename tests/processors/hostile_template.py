"""A template whose children do to themselves what hostile files do to decoders.

A file that starts with ``HOSTILE`` names one of the functions below; others are decoded as they
are. Children talk on descriptor 3.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from processors.errors import DecodeError
from processors.media import Media, MediaInfo, MediaOptions, open_media
from processors.orientation import Room
from processors.sandbox.template import main

SOCKET = 3
ACTS: dict[str, Callable[..., Media | None]] = {}
_files = 0


def open_hostile(data: memoryview, options: MediaOptions, room: Room) -> Media:
    global _files  # noqa: PLW0603 (of this process: whether it is a fresh one)
    _files += 1
    word, _, rest = bytes(data).partition(b" ")
    if word != b"HOSTILE":
        return open_media(data, options, room)
    name, *arguments = rest.decode().split()
    media = ACTS[name](*arguments)
    if media is None:
        time.sleep(100)
    return media


def act(function: Callable[..., Media | None]) -> Callable[..., Media | None]:
    ACTS[function.__name__] = function
    return function


def pixels(number: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), 10 * number % 250, np.uint8)


def clip_info(frames: int, height: int = 4, width: int = 6) -> MediaInfo:
    return MediaInfo(
        kind="video",
        height=height,
        width=width,
        total_num_frames=100,
        duration_s=4.0,
        indices=tuple(range(frames)),
        timestamps_s=tuple(number / 25 for number in range(frames)),
    )


def say(**fields: object) -> None:
    os.write(SOCKET, json.dumps(fields).encode())


@act
def touch_nothing() -> NoReturn:
    ctypes.string_at(0)
    raise AssertionError


@act
def raise_signal(name: str) -> None:
    signal.raise_signal(signal.Signals[name])


@act
def abort() -> NoReturn:
    os.abort()


@act
def leave(status: str) -> NoReturn:
    os._exit(int(status))


@act
def loop() -> NoReturn:
    while True:
        pass


@act
def sleep(seconds: str) -> Media:
    time.sleep(float(seconds))
    return Media(info=MediaInfo(kind="image", height=4, width=6), frames=iter([pixels(1)]))


@act
def eat_memory() -> NoReturn:
    eaten = []
    while True:
        eaten.append(bytearray(10_000))


@act
def map_memory() -> NoReturn:
    eaten = []
    while True:
        eaten.append(mmap.mmap(-1, 2**24))  # shared, which is no data


@act
def fail() -> NoReturn:
    raise ZeroDivisionError("of no decoder's making")


@act
def run_a_program() -> NoReturn:
    os.execv("/bin/true", ["true"])


@act
def write_garbage() -> None:
    os.write(SOCKET, bytes(range(256)))


@act
def write_half() -> None:
    os.write(SOCKET, b'{"item": 2, "info": {"kind": "ima')


@act
def write_much() -> None:
    os.write(SOCKET, b"[" * 140_000)


@act
def write_nothing() -> None:
    ctypes.CDLL(None).send(SOCKET, b"", 0, 0)


@act
def close_the_socket() -> None:
    os.close(SOCKET)


@act
def flood() -> NoReturn:
    while True:
        os.write(SOCKET, b"[" * 1000)


@act
def promise(promised: str, kept: str) -> Media:
    """A clip of which fewer frames come."""
    frames = (pixels(number) for number in range(int(kept)))
    return Media(info=clip_info(int(promised)), frames=frames)


@act
def lie(name: str, value: str) -> Media:
    """A clip of three with one number that cannot be."""
    info = replace(clip_info(3), **{name: json.loads(value)})
    return Media(info=info, frames=(pixels(number) for number in range(3)))


@act
def picture(height: str, width: str, *size: str) -> Media:
    """One that says its size, and has a frame of another one."""
    info = MediaInfo(kind="image", height=int(height), width=int(width))
    return Media(info=info, frames=iter([pixels(1, *map(int, size))]))


@act
def trickle(frames: str, every_s: str) -> Media:
    def made() -> Iterator[np.ndarray]:
        for number in range(int(frames)):
            time.sleep(float(every_s))
            yield pixels(number)

    return Media(info=clip_info(int(frames)), frames=made())


@act
def promise_and_go_on(item: str) -> None:
    """A clip of three, one frame of it, and on to the next file."""
    info = vars(clip_info(3))
    say(item=int(item), info=info, frame=[4, 6])
    say(item=int(item) + 1, info=info, frame=[4, 6])


@act
def stall_midway() -> Media:
    def frames() -> Iterator[np.ndarray]:
        yield pixels(0)
        loop()

    return Media(info=clip_info(2), frames=frames())


@act
def die_midway(at: str) -> Media:
    """A clip of six that ends the process, unless that is a fresh one."""

    def frames() -> Iterator[np.ndarray]:
        for number in range(6):
            if number == int(at) and _files > 1:
                signal.raise_signal(signal.SIGSEGV)
            yield pixels(number)

    return Media(info=clip_info(6), frames=frames())


@act
def die_after(frames: str) -> Media:
    """A clip of one frame more than come before its end, and the process's."""

    def made() -> Iterator[np.ndarray]:
        yield from (pixels(number) for number in range(int(frames)))
        signal.raise_signal(signal.SIGSEGV)

    return Media(info=clip_info(int(frames) + 1), frames=made())


@act
def change_story() -> Media:
    """A clip that is another one when it is decoded again; the first time it ends the process."""

    def frames() -> Iterator[np.ndarray]:
        yield pixels(0)
        yield pixels(1)
        os._exit(1)

    return Media(info=clip_info(3 if _files > 1 else 2), frames=frames())


@act
def large_clip(frames: str, side: str) -> Media:
    size = (int(side), int(side))
    made = (pixels(number, *size) for number in range(int(frames)))
    return Media(info=clip_info(int(frames), *size), frames=made)


@act
def break_out(parent: str) -> NoReturn:
    """Tries all that is denied, and tells what was not."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = int(parent)

    def check(result: int) -> None:
        if result < 0:
            raise OSError

    tries: dict[str, Callable[[], object]] = {
        "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "create": lambda: os.open("/tmp/patchflow-was-here", os.O_CREAT | os.O_WRONLY),
        "environ": lambda: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
        "memory": lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR),
        "unlink": lambda: Path("/tmp/patchflow-was-here").unlink(),
        "socket": socket.socket,
        "pair": socket.socketpair,
        "pipe": os.pipe,
        "dup": lambda: os.dup(SOCKET),
        "fork": lambda: os.fork() or os._exit(0),
        "kill": lambda: os.kill(pid, 0),
        "ptrace": lambda: check(libc.ptrace(16, pid, 0, 0)),
        "peek": lambda: check(libc.process_vm_readv(pid, _vector(), 1, _vector(), 1, 0)),
        "code": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_EXEC | mmap.PROT_READ),
        "files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        "chdir": lambda: os.chdir("/"),
    }
    done = [name for name, attempt in tries.items() if _succeeds(attempt)]
    raise DecodeError(
        "corrupt", f"done: {' '.join(done) or 'nothing'}; environment: {' '.join(os.environ)}"
    )


def _vector() -> ctypes.Array[ctypes.c_size_t]:
    page = ctypes.create_string_buffer(16)
    return (ctypes.c_size_t * 2)(ctypes.addressof(page), 16)


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, ValueError):  # ValueError: of a limit that cannot be raised
        return False
    return True


if __name__ == "__main__":
    main(open_hostile)
