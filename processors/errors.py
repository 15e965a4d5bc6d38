"""What can be wrong with a picture or a clip, as codes that callers can count and store.

``ErrorCode`` lists every code that the errors table of a run may hold. The decoders here raise only
those about content; the rest belong to whoever reads the bytes or runs the encoder.

    Exception
    ├── DecodeError              bytes that give no pixels; carries one of the codes
    └── ValueError
        └── AspectRatioError     pixels that no grid of patches fits; code ``aspect_ratio``
"""

from __future__ import annotations

from typing import Final, Literal

ErrorCode = Literal[
    "not_found",
    "access_denied",
    "read_failed",
    "version_changed",
    "empty",
    "unsupported_format",
    "corrupt",
    "truncated",
    "too_large",
    "aspect_ratio",
    "no_video_stream",
    "decode_timeout",
    "decoder_crashed",
    "decoder_out_of_memory",
    "not_finite",
    "encode_failed",
]

MAX_MESSAGE_CHARS: Final = 200


class DecodeError(Exception):
    """Bytes could not be turned into pixels, for a reason that lies in the bytes.

    It survives pickling, so that a decoder process can hand it to its parent.

    Args:
        code: Which kind of failure.
        message: What was wrong. It may quote the file, so whatever is not printable becomes a
            space, line breaks included, and it is cut to 200 characters.
        attempts: How often decoding was tried; more than once where it cost a decoder process.
    """

    code: ErrorCode
    message: str
    attempts: int

    def __init__(self, code: ErrorCode, message: str, *, attempts: int = 1) -> None:
        self.code = code
        self.message = _one_line(message)
        self.attempts = attempts
        super().__init__(self.code, self.message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class AspectRatioError(ValueError):
    """One side is more than 200 times the other, which the GLM-4V processors refuse."""

    code: ErrorCode = "aspect_ratio"


def _one_line(text: str) -> str:
    # isprintable is false for control, format (text direction) and surrogate characters alike.
    printable = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(printable.split())
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."
