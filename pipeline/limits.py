"""What one file may cost: limits that `run.json` keeps and a later run may change."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from pipeline.errors import UsageError
from pipeline.flags import check_positive, flag

# Of bytes and pixels: as much as can be addressed beside all else.
MOST_LIMIT: Final = 2**40
MOST_SECONDS: Final = 1e6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the bytes of one item may be, and what decoding them may take.

    No result depends on them, only whether there is one: an item beyond one of them is an error.

    Raises:
        UsageError: One is not positive, or so large that it could not be kept.

    Attributes:
        max_file_bytes: Largest file that is read.
        max_source_pixels: Largest ``width * height`` of a picture, or of a clip's frame.
        max_duration_s: Longest clip, in seconds.
        decode_timeout_s: Seconds that decoding may keep an actor waiting.
        decoder_memory_bytes: Private memory that decoding may take.
    """

    max_file_bytes: int = 2**30
    max_source_pixels: int = 200_000_000
    max_duration_s: float = 4 * 3600.0
    decode_timeout_s: float = 300.0
    decoder_memory_bytes: int = 1536 * 2**20

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            check_positive(self, name)
            most, value = MOST_SECONDS if name.endswith("_s") else MOST_LIMIT, getattr(self, name)
            if value > most:
                raise UsageError(f"{flag(name)} must be at most {most:.0f}, got {value}")
