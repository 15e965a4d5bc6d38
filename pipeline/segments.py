"""The rows of `frames/` and `tokens/`: one a segment of every embedded item."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import Level

# Writers and readers hold a row group several times over.
_ROW_GROUP_BYTES = 32 * 2**20

Counts = npt.NDArray[np.int64]


def segment_table(rows: pa.Table, embedding: pa.DataType, level: Level) -> pa.Table:
    """The segments of `schema.encoded` rows that have an embedding, in order.

    Vectors and tokens are not copied: the table is a view of the rows.

    Args:
        rows: Of one level, which has segments.
        embedding: The vectors' fixed_size_list type.
        level: The rows' own.

    Returns:
        `schema.segments`.
    """
    target = schema.segments(embedding, level)
    batches = [_batch(batch, target) for batch in rows.to_batches()]
    return pa.Table.from_batches(batches, schema=target)


def _batch(rows: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    light = ["item_id", "uri", "grid_thw", "timestamps", "num_tokens"]
    good = rows.select(light).filter(pc.is_null(rows["error_code"]))
    slices, heights, widths = good["grid_thw"].flatten().to_numpy().reshape(-1, 3).T
    row = np.repeat(np.arange(good.num_rows), slices)
    width = target.field("embedding").type.list_size
    found = {
        "item_id": good["item_id"].take(pa.array(row)),
        "uri": good["uri"].take(pa.array(row)),
        "segment": np.arange(len(row)) - np.repeat(np.cumsum(slices) - slices, slices),
        "timestamp_s": _timestamps(good["timestamps"], slices),
        # Rows without an embedding have empty lists.
        "embedding": _vectors(rows["segment_embeddings"], width),
    }
    if "tokens" in target.names:
        lengths = good["num_tokens"].to_numpy() // slices
        ends = np.concatenate([[0], np.cumsum(lengths[row], dtype=np.int64)])
        found |= {"grid_h": heights[row], "grid_w": widths[row]}
        found["tokens"] = pa.ListArray.from_arrays(
            pa.array(ends, pa.int32()), _vectors(rows["token_embeddings"], width)
        )
    columns = [
        pa.array(found[f.name], f.type) if isinstance(found[f.name], np.ndarray) else found[f.name]
        for f in target
    ]
    return pa.RecordBatch.from_arrays(columns, schema=target)


def _vectors(flat: pa.LargeListArray, width: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(flat.flatten(), width)


def _timestamps(lists: pa.ListArray, slices: Counts) -> pa.Array:
    """One timestamp a segment; a still, whose list is null, has one segment."""
    clip = lists.is_valid().to_numpy(zero_copy_only=False)
    given = lists.value_lengths().to_numpy(zero_copy_only=False)
    assert (given[clip] == slices[clip]).all(), f"{given} timestamps of {slices} segments"
    missing = np.repeat(~clip, slices)
    seconds = np.zeros(len(missing))
    seconds[~missing] = lists.flatten().to_numpy()
    return pa.array(seconds, pa.float64(), mask=missing)


def to_parquet(table: pa.Table) -> bytes:
    """A `frames/` or `tokens/` object, in row groups that a reader can hold.

    Vectors neither repeat nor sort: dictionaries and statistics of them took six times longer and
    saved nothing, measured on float16 tokens.
    """
    others = [name for name in table.column_names if name not in ("embedding", "tokens")]
    sink = io.BytesIO()  # Grows by an eighth where Arrow's own doubles.
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=others, write_statistics=others
    ) as writer:
        for group in _row_groups(table):
            writer.write_table(group, row_group_size=max(1, group.num_rows))
    return sink.getvalue()


def _row_groups(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of `_ROW_GROUP_BYTES` at most, or of one row."""
    kind = table.schema.field("embedding").type
    sizes = np.full(table.num_rows, kind.list_size * kind.value_type.bit_width // 8)
    if "tokens" in table.column_names:
        lengths = pc.list_value_length(table["tokens"]).to_numpy()
        sizes += lengths.astype(np.int64) * kind.list_size * 2
    ends = np.cumsum(sizes)
    start = 0
    while start < table.num_rows:
        most = ends[start] - sizes[start] + _ROW_GROUP_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, most, side="right")))
        yield table.slice(start, stop - start)
        start = stop
