"""What the encoder stage reads of its rows, and what it writes into them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.block import Block, Floats, Levels


def patches_of(column: pa.ChunkedArray, items: list[int]) -> list[Levels]:
    """The bytes of each item's patches, uint8 [bytes], as views of the block's own buffers."""
    views = [view for chunk in column.chunks for view in _views(chunk)]
    return [views[row] for row in items]


def failure_of(
    block: Block, item: int, vectors: Floats, finite: bool, segments: Floats | None
) -> tuple[str, str, str, int] | None:
    """What an item's row says of why it has no embedding; None where it has one.

    Args:
        block: With its results.
        item: Which of the block's.
        vectors: Of all items, as they are stored.
        finite: Whether all values of this one's are finite.
        segments: Of all segments, as they are stored, if they are.
    """
    if item in block.failures:
        why = block.failures[item]
        return "encode", "encode_failed", why.message, why.attempts
    message = ""
    if not finite:
        message = f"the {vectors.dtype} vector is not finite"
    elif segments is not None:
        span = block.span(item)
        sound = np.isfinite(segments[span]).all(axis=1)
        if not sound.all():
            message = f"the {vectors.dtype} vector of segment {sound.argmin()} is not finite"
        elif not block.finite[span].all():
            number = block.finite[span].argmin()
            message = f"a token of segment {number} is not finite in float16"
    return ("encode", "not_finite", message, 1) if message else None


def segment_columns(
    block: Block, items: list[int], rows: dict[str, Any], segments: Floats
) -> dict[str, pa.Array]:
    """`schema.SEGMENT_RESULTS` of the rows without an error; those of all others are empty."""
    codes = rows["error_code"]
    good = {item: row for item, row in enumerate(items) if codes[row] is None}
    kept, tokens = block.without(set(range(len(items))) - set(good))
    slices, lengths = np.zeros((2, len(codes)), np.int64)
    for item, row in good.items():
        slices[row], lengths[row] = block.grids[item][0], rows["num_tokens"][row]
    columns = {"segment_embeddings": _lists(segments[kept], slices)}
    if block.keeps_tokens:
        columns["token_embeddings"] = _lists(tokens, lengths)
    return columns


def _lists(vectors: Floats, counts: npt.NDArray[np.int64]) -> pa.LargeListArray:
    """Flat lists of so many vectors each, over their own buffer."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts) * vectors.shape[1]])
    return pa.LargeListArray.from_arrays(offsets, vectors.reshape(-1))


def _views(array: pa.LargeBinaryArray) -> list[Levels]:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    levels = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return [levels[start:end] for start, end in pairwise(ends)]
