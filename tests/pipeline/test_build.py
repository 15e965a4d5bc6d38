"""The arithmetic of blocks, and the nesting that keeps them apart."""

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import Workers, block_rows, nest, window
from pipeline.preprocess import PreprocessConfig, unnest
from processors import ImageOptions

SHARD = "g000000-00000000"
Rows = Callable[..., pa.Table]


def limits(max_pixels: int) -> PreprocessConfig:
    options = ImageOptions(min_pixels=1, max_pixels=max_pixels)
    return PreprocessConfig(max_file_bytes=1, max_source_pixels=1, options=options)


def workers(preprocess: int, encode: int = 1) -> Workers:
    return Workers(
        preprocess=preprocess, encode=encode, preprocess_cpus=1, encode_cpus=1, encode_gpus=0
    )


@given(
    items=st.integers(1, 20),
    spare=st.integers(0, 20),
    rows_a_block=st.integers(1, 8),
)
def test_nesting_keeps_every_row_in_order_and_fills_the_shard(
    manifest_rows: Rows, items: int, spare: int, rows_a_block: int
) -> None:
    rows = manifest_rows([f"/{n}.jpg" for n in range(items)])
    nested = nest(rows, SHARD, items + spare, rows_a_block)
    blocks = [unnest(nested.slice(index, 1)) for index in range(nested.num_rows)]
    whole = pa.concat_tables(blocks)
    assert whole.slice(0, items).equals(rows)
    empty = dict.fromkeys(rows.column_names) | {"shard": SHARD}
    assert whole.slice(items).to_pylist() == [empty] * spare
    real = [block.num_rows - block["item_id"].null_count for block in blocks]
    assert real[:-1] == [rows_a_block] * (len(real) - 1)
    assert 1 <= real[-1] <= rows_a_block
    assert sum(block.num_rows for block in blocks[:-1]) == rows_a_block * (len(blocks) - 1)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x", None, "x"]).dictionary_encode(),
        pa.array([[1], [], None], pa.list_(pa.int16())),
        pa.array([{"a": 1}, None, {"a": 3}], pa.struct([("a", pa.int64())])),
        pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float32(), 2)),
        pa.array([b"1", None, b"3"], pa.binary(1)),
        pa.array([0, None, 2], pa.timestamp("ns", "UTC")),
        pa.nulls(3),
    ],
    ids=lambda values: str(values.type),
)
def test_a_callers_column_of_any_type_survives_nesting(
    manifest_rows: Rows, values: pa.Array
) -> None:
    rows = manifest_rows(["/1", "/2", "/3"], own=pa.table({"own": values}))
    nested = nest(rows, SHARD, 5, 2)
    whole = pa.concat_tables([unnest(nested.slice(0, 1)), unnest(nested.slice(1, 1))])
    assert whole["own"].to_pylist() == [*values.to_pylist(), None, None]
    assert whole.schema.equals(rows.schema)


@pytest.mark.parametrize(
    ("max_pixels", "items", "preprocess", "rows"),
    [
        (2 * 28 * 28, 100_000, 2, 64),  # Small images: the most there is.
        (2 * 2**22, 100_000, 2, 5),  # 12 MiB of patches an image, 64 MiB a block.
        (2 * 2**30, 100_000, 2, 1),  # One image is more than a block should be.
        (2 * 28 * 28, 80, 2, 10),  # Few items: four blocks for every actor.
        (2 * 28 * 28, 1, 8, 1),
    ],
)
def test_a_block_is_bounded_in_bytes_and_leaves_every_actor_its_share(
    max_pixels: int, items: int, preprocess: int, rows: int
) -> None:
    assert block_rows(limits(max_pixels), items, workers(preprocess)) == rows


@given(
    rows_a_block=st.integers(1, 64),
    shard_rows=st.integers(1, 5000),
    preprocess=st.integers(1, 50),
    encode=st.integers(1, 8),
)
def test_the_window_holds_work_for_every_actor_and_one_shard_more(
    rows_a_block: int, shard_rows: int, preprocess: int, encode: int
) -> None:
    shards = window(rows_a_block, shard_rows, workers(preprocess, encode))
    wanted = (preprocess + encode) * rows_a_block
    assert (shards - 1) * shard_rows > wanted
    assert shards >= 2


def test_a_cluster_of_workers_is_said_in_words() -> None:
    assert str(workers(3)) == "3 preprocess and 1 CPU encoder actors"
    gpu = Workers(preprocess=12, encode=2, preprocess_cpus=1, encode_cpus=0, encode_gpus=1)
    assert str(gpu) == "12 preprocess and 2 GPU encoder actors"
