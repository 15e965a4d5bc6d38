"""The template, of which every process dies where it tries to open a file or a socket.

The filter of its own answers such a call with an error that a library may pass over in silence.
The trap does not. A file that is `TRIP` and a path falls into it.
"""

from __future__ import annotations

from processors.media import Media, MediaOptions, open_media
from processors.orientation import Room
from processors.sandbox import lockdown, template
from tests.faults.trap import set_trap

_filter_calls = lockdown._filter_calls


def trap_and_filter() -> None:
    set_trap()
    _filter_calls()


def open_or_trip(data: memoryview, options: MediaOptions, room: Room) -> Media:
    word, _, path = bytes(data).partition(b" ")
    if word == b"TRIP":
        with open(path, "rb"):  # noqa: PTH123 (the shortest way to the call)
            pass
    return open_media(data, options, room)


if __name__ == "__main__":
    lockdown._filter_calls = trap_and_filter
    template.main(open_or_trip)
