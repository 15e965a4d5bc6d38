"""What the decoder process and its parent say to each other.

Two sockets that keep messages apart (``SOCK_SEQPACKET``), so that none is ever read in part. The
parent tells its *template*, which never sees a file, to fork a *child*; parent and child then talk
without it. The parent is believed. A child that has met a hostile file may say anything, so what it
says is small JSON of which every value is checked here; never pickle.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

from processors.errors import DecodeError, ErrorCode
from processors.media import MAX_SECONDS, MediaInfo, MediaKind, MediaOptions

SLOTS: Final = 2
"""Frames that may wait in shared memory. The child fills its slots in turn."""

BUFFERS: Final = 2
"""Files that may wait in shared memory: one in work and the next."""

MAX_MESSAGE_BYTES: Final = 128 * 1024  # under what Linux lets a socket hold by default
MAX_FRAMES: Final = 4096  # a clip's index and time of each fit into a message

CHILD_SOCKET: Final = 3
"""The one open descriptor of a child, after three that lead nowhere."""

OUT_OF_MEMORY_STATUS: Final = 71
"""A child whose memory is used up cannot be asked to write a message about it: it exits."""

RELEASE: Final = b"r"
"""Parent to child: one more slot may be written to."""

# About the file itself. What only someone who reads or encodes can know is not the child's to say.
_CHILD_CODES: Final = (
    "empty",
    "unsupported_format",
    "corrupt",
    "truncated",
    "too_large",
    "no_video_stream",
    "decoder_crashed",
)

_MAX_INT32: Final = 2**31 - 1  # of which type the columns are that these numbers go to

_WORK: Final = struct.Struct("<QQQ")


class GarbageError(Exception):
    """A message that no sound child sends."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a child is told when it begins: its limit, and what to decode of every file.

    Attributes:
        memory_bytes: Private memory that it may take beyond what its template holds.
        options: For ``open_media``.
    """

    memory_bytes: int
    options: MediaOptions


@dataclass(frozen=True, kw_only=True)
class Work:
    """One file to decode.

    Attributes:
        item: Its number, said with every answer.
        buffer: Which of the ``BUFFERS`` holds it.
        size: Bytes.
    """

    item: int
    buffer: int
    size: int

    def to_bytes(self) -> bytes:
        """The message."""
        return _WORK.pack(self.item, self.buffer, self.size)

    @classmethod
    def from_bytes(cls, message: bytes) -> Work:
        """Reads what ``to_bytes`` made."""
        item, buffer, size = _WORK.unpack(message)
        return cls(item=item, buffer=buffer, size=size)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One step of an answer; the first one has ``info``, unless it is the error.

    Attributes:
        item: Whose.
        info: What the file holds.
        frame: Height and width of what is in the next slot now.
        error: Why there is no more; never ``decoder_out_of_memory``.
    """

    item: int
    info: MediaInfo | None = None
    frame: tuple[int, int] | None = None
    error: DecodeError | None = None

    def to_bytes(self) -> bytes:
        """The message, ASCII."""
        fields: dict[str, Any] = {"item": self.item}
        if self.info is not None:
            fields["info"] = vars(self.info)
        if self.frame is not None:
            fields["frame"] = self.frame
        if self.error is not None:
            fields["error"] = (self.error.code, self.error.message)
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, message: bytes | bytearray, *, options: MediaOptions) -> Reply:
        """Reads a child's message, believing nothing.

        Args:
            message: The message.
            options: What the child was told to decode.

        Raises:
            GarbageError: Where a value is missing, too many, of another type or out of range.
        """
        fields = _fields(_parsed(message), {"item"}, {"info", "frame", "error"})
        has_error = "error" in fields
        if has_error == bool({"info", "frame"} & fields.keys()):
            raise GarbageError("a message that holds nothing, or an error with something else")
        return cls(
            item=_integer(fields["item"], maximum=2**63),
            info=_media_info(fields["info"], options) if "info" in fields else None,
            frame=_frame(fields["frame"], options.max_pixels) if "frame" in fields else None,
            error=_decode_error(fields["error"]) if has_error else None,
        )


def promised_frames(info: MediaInfo) -> int:
    """How many frames follow."""
    return 1 if info.indices is None else len(info.indices)


def _parsed(message: bytes | bytearray) -> object:
    if len(message) > MAX_MESSAGE_BYTES:
        raise GarbageError(f"a message of over {MAX_MESSAGE_BYTES} bytes")
    try:
        return json.loads(message)
    except (ValueError, RecursionError) as error:
        raise GarbageError(f"no JSON: {error}") from error


def _fields(value: object, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not required <= value.keys() <= required | optional:
        raise GarbageError(f"expected the fields {sorted(required)}, got {value!r:.80}")
    return value


def _integer(value: object, *, maximum: int, minimum: int = 0) -> int:
    if type(value) is not int or not minimum <= value <= maximum:
        raise GarbageError(f"expected an integer of {minimum}..{maximum}, got {value!r:.80}")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= cast("float", value) <= MAX_SECONDS:
        raise GarbageError(f"expected seconds of 0..{MAX_SECONDS:g}, got {value!r:.80}")
    return float(cast("float", value))


def _list(value: object, *, maximum: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > maximum:
        raise GarbageError(f"expected a list of {maximum} values or fewer, got {value!r:.80}")
    return value


def _frame(value: object, max_pixels: int) -> tuple[int, int]:
    sides = _list(value, maximum=2)
    if len(sides) != 2:
        raise GarbageError(f"expected two sides, got {sides!r:.80}")
    longest = min(max_pixels, _MAX_INT32)
    height, width = (_integer(side, minimum=1, maximum=longest) for side in sides)
    if height * width > max_pixels:
        raise GarbageError(f"a frame of {width} x {height}, over the limit of {max_pixels} pixels")
    return height, width


def _media_info(value: object, options: MediaOptions) -> MediaInfo:
    fields = _fields(value, set(MediaInfo.__dataclass_fields__), set())
    height, width = _frame([fields["height"], fields["width"]], options.max_pixels)
    kind: MediaKind = fields["kind"]
    if kind not in get_args(MediaKind):
        raise GarbageError(f"expected the kind of a file, got {kind!r:.80}")
    clip = {name: fields[name] for name in fields.keys() - {"kind", "height", "width"}}
    if kind == "image":
        if any(value is not None for value in clip.values()):
            raise GarbageError("a picture with a clip's numbers")
        return MediaInfo(kind=kind, height=height, width=width)
    if options.sampling is None:
        raise GarbageError("a clip, and only pictures are wanted")
    most = options.sampling.most_frames
    total = _integer(clip["total_num_frames"], minimum=1, maximum=_MAX_INT32)
    indices = [_integer(index, maximum=total - 1) for index in _list(clip["indices"], maximum=most)]
    timestamps = [_seconds(time) for time in _list(clip["timestamps_s"], maximum=most)]
    if not indices:
        raise GarbageError("a clip of no frames")
    if indices != sorted(indices) or timestamps != sorted(timestamps):
        raise GarbageError("frames out of order")
    if len(indices) != len(timestamps):
        raise GarbageError("not a time for each frame")
    duration = clip["duration_s"]
    return MediaInfo(
        kind=kind,
        height=height,
        width=width,
        total_num_frames=total,
        duration_s=None if duration is None else _seconds(duration),
        indices=tuple(indices),
        timestamps_s=tuple(timestamps),
    )


def _decode_error(value: object) -> DecodeError:
    code, message = (*_list(value, maximum=2), None, None)[:2]
    if code not in _CHILD_CODES or not isinstance(message, str):
        raise GarbageError(f"expected a code and a message, got {value!r:.80}")
    return DecodeError(cast("ErrorCode", code), message)
