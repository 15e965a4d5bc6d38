"""The audit of a shard's `frames/` or `tokens/` object, against its embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Rows = npt.NDArray[np.int64]


def check_segments(good: pa.Table, segments: pa.Table, patches_a_token: int) -> Iterator[str]:
    """Whether every segment of every embedded item has its one row, in order, and is sound.

    Args:
        good: The shard's embeddings, whose grids are sound.
        segments: Of the columns that its level has.
        patches_a_token: To hold the numbers of tokens against.
    """
    slices, heights, widths = pc.list_flatten(good["grid_thw"]).to_numpy().reshape(-1, 3).T
    row = np.repeat(np.arange(good.num_rows), slices)
    number = np.arange(len(row)) - np.repeat(np.cumsum(slices) - slices, slices)
    wrong = [*_check_listed(good["item_id"].take(pa.array(row)), number, segments)]
    yield from wrong
    if wrong:
        return
    if not segments["uri"].equals(good["uri"].take(pa.array(row))):
        yield "segments with another uri than their item"
    yield from _check_timestamps(good["num_frames"].is_valid().to_numpy()[row], number, segments)
    yield from check_finite(segments["embedding"], "segment embeddings")
    if "tokens" in segments.column_names:
        grids = [segments[name].to_numpy() for name in ("grid_h", "grid_w")]
        if not np.array_equal(grids, [heights[row], widths[row]]):
            yield "segments with another grid than their item"
        counts = pc.list_value_length(segments["tokens"]).to_numpy()
        if not np.array_equal(counts * patches_a_token, heights[row] * widths[row]):
            yield "segments with another number of tokens than their grid has"
        yield from check_finite(segments["tokens"], "tokens")


def _check_listed(ids: pa.ChunkedArray, number: Rows, segments: pa.Table) -> Iterator[str]:
    pairs = [
        [*zip(keys.to_pylist(), counts.tolist(), strict=True)]
        for keys, counts in (
            (ids, number),
            (segments["item_id"], segments["segment"].to_numpy()),
        )
    ]
    expected, found = map(Counter, pairs)
    if expected != found:
        missing, foreign = len(expected.keys() - found), len(found.keys() - expected)
        twice = sum(count > 1 for count in found.values())
        yield f"{missing} segments without a row, {twice} with several, {foreign} of no embedding"
    elif pairs[0] != pairs[1]:
        yield "segments in another order than the embeddings"


def _check_timestamps(
    of_clip: npt.NDArray[np.bool_], number: Rows, segments: pa.Table
) -> Iterator[str]:
    column = segments["timestamp_s"]
    given = column.is_valid().to_numpy()
    if (given & ~of_clip).any():
        yield "stills with a timestamp"
    if (of_clip & ~given).any():
        yield "segments of clips without a timestamp"
        return
    seconds = column.to_numpy()
    later = of_clip & (number > 0)
    # What is not a number is not later than anything.
    if not (seconds[later] >= np.roll(seconds, 1)[later]).all():
        yield "timestamps that do not ascend"


def check_finite(column: pa.ChunkedArray, what: str) -> Iterator[str]:
    """Whether every number is there and finite in a column of vectors, or of lists of them."""
    whole, finite = column.null_count == 0, True
    for values in column.chunks:
        while isinstance(values, (pa.ListArray, pa.FixedSizeListArray)):
            values = values.flatten()  # noqa: PLW2901 (the numbers within, level by level)
            whole = whole and values.null_count == 0
        finite = finite and bool(np.isfinite(values.drop_null().to_numpy()).all())
    if not whole:
        yield f"null {what}"
    if not finite:
        yield f"{what} that are not finite"
