"""How many rows a call of `Preprocess` takes: as many as are expected to fill a few blocks.

A call passes on a block of patches whenever it has `block_bytes` of them, so that blocks are full
and their memory is bounded, whatever the items are. Several of them a call spare the driver half of
its work. A still's patches are expected from the size of its file, and from what the stills before
it became: an estimate that is wrong makes calls longer or shorter, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.preprocess import PreprocessConfig
from pipeline.progress import StillSizes

_BLOCKS_A_CALL = 4
# Before anything was seen: a web photo takes 1.5 to 4 bits a pixel as JPEG and 24 as patches. It
# counts as much as files of so many bytes.
_PATCH_BYTES_A_FILE_BYTE = 10
_PRIOR_FILE_BYTES = 2**20
# Where a manifest gives no sizes, the first stills are expected to be as large as they may be.
_PRIOR_ITEMS = 4


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """What bounds the rows of a call.

    Attributes:
        rows: The most of a call.
        first_rows: The most of a shard's first; for each one after it that grows by a half.
        item_bytes: The most bytes of patches that an item listed as an image can become.
        clip_bytes: The same of one listed as a video.
        block_bytes: Of patches that a block has.
    """

    rows: int
    first_rows: int
    item_bytes: int
    clip_bytes: int
    block_bytes: int

    @property
    def call_bytes(self) -> int:
        """Patches that a call is expected to make."""
        return _BLOCKS_A_CALL * self.block_bytes

    @classmethod
    def of(cls, config: PreprocessConfig, *, rows: int, first_rows: int) -> CallLimits:
        """Those of a run."""
        return cls(
            rows=rows,
            first_rows=first_rows,
            item_bytes=config.item_bytes,
            clip_bytes=config.clip_bytes,
            block_bytes=config.block_bytes,
        )


def expected_bytes(seen: StillSizes, file_bytes: int | None, most: int) -> float:
    """Bytes of patches that a still is expected to become.

    Args:
        seen: What the stills before it became.
        file_bytes: Size of its file, or None where the manifest does not give it.
        most: The most that it can become.
    """
    if file_bytes is None:
        mean = (_PRIOR_ITEMS * most + seen.patch_bytes) / (_PRIOR_ITEMS + seen.items)
    else:
        prior = _PRIOR_FILE_BYTES * _PATCH_BYTES_A_FILE_BYTE
        factor = (prior + seen.patch_bytes) / (_PRIOR_FILE_BYTES + seen.file_bytes)
        mean = factor * file_bytes
    return min(mean, most)


def expected_rows(limits: CallLimits, mean_file_bytes: float) -> int:
    """Rows of a call over stills whose files have so many bytes on the average."""
    expected = expected_bytes(StillSizes(), int(mean_file_bytes), limits.item_bytes)
    return max(1, min(limits.rows, int(limits.call_bytes / max(1.0, expected))))


def cut(
    items: Iterable[tuple[str | None, int | None]], limits: CallLimits, seen: StillSizes
) -> list[int]:
    """Where a shard is cut into calls: before each of these rows, and at its end.

    A clip that may be larger than a block has a call of its own.

    Args:
        items: Media type and file size of each row.
        limits: Of the run.
        seen: What earlier stills became.
    """
    alone = limits.clip_bytes > limits.block_bytes
    ends, call_bytes, most_rows = [0], 0.0, min(limits.first_rows, limits.rows)
    row, after_clip = 0, False
    for row, (media_type, file_bytes) in enumerate(items, 1):
        clip = media_type == "video"
        most = limits.clip_bytes if clip else limits.item_bytes
        expected = most if clip else expected_bytes(seen, file_bytes, most)
        rows = row - 1 - ends[-1]
        full = rows == most_rows or call_bytes + expected > limits.call_bytes
        if rows and (full or (alone and (clip or after_clip))):
            ends.append(row - 1)
            call_bytes, most_rows = 0.0, min(-(-most_rows * 3 // 2), limits.rows)
        call_bytes += expected
        after_clip = clip
    return [*ends, row]
