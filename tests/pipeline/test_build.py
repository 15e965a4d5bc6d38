"""The arithmetic of blocks, and the nesting that keeps them apart."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schema
from pipeline.build import Workers, block_rows, cuts, nest, window
from pipeline.preprocess import PreprocessConfig, unnest
from processors import ImageOptions
from tests.support.preprocessing import preprocess_config

MIB = 2**20
Rows = Callable[..., pa.Table]


def limits(max_pixels: int) -> PreprocessConfig:
    return preprocess_config(ImageOptions(min_pixels=1, max_pixels=max_pixels))


def workers(preprocess: int, encode: int = 1) -> Workers:
    return Workers(
        preprocess=preprocess,
        encode=encode,
        preprocess_cpus=1,
        encode_cpus=1,
        encode_gpus=0,
        preprocess_bytes=1,
        encode_bytes=1,
        most_threads=1,
        commits=1,
    )


@given(items=st.integers(1, 20), chance=st.randoms(use_true_random=False))
def test_nesting_keeps_every_row_in_order_and_its_place(
    manifest_rows: Rows, items: int, chance: Random
) -> None:
    rows = manifest_rows([f"/{n}.jpg" for n in range(items)])
    ends = [0, *sorted(chance.sample(range(1, items), chance.randrange(items))), items]
    nested = nest(rows, ends)
    blocks = [unnest(nested.slice(index, 1)) for index in range(nested.num_rows)]
    assert [block.num_rows for block in blocks] == [end - start for start, end in pairwise(ends)]
    whole = pa.concat_tables(blocks)
    assert whole.drop_columns(schema.PLACE.name).equals(rows)
    assert whole[schema.PLACE.name].to_pylist() == list(range(items))


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
    nested = nest(rows, [0, 2, 3])
    whole = pa.concat_tables([unnest(nested.slice(0, 1)), unnest(nested.slice(1, 1))])
    assert whole["own"].to_pylist() == values.to_pylist()
    assert whole.schema.equals(rows.schema.append(schema.PLACE))


@pytest.mark.parametrize(
    ("items", "preprocess", "rows"),
    [
        (100_000, 2, 128),  # The most there is.
        (80, 2, 10),  # Few items: four blocks for every actor.
        (1, 8, 1),
    ],
)
def test_few_items_are_shared_by_all_actors(items: int, preprocess: int, rows: int) -> None:
    assert block_rows(items, workers(preprocess)) == rows


@pytest.mark.parametrize(
    ("max_pixels", "kinds", "ends"),
    [
        (2 * 28 * 28, "i" * 130, [0, 64, 128, 130]),  # Small images: as many rows as may be.
        (2 * 4 * MIB, "i" * 12, [0, 5, 10, 12]),  # 12 MiB of patches an image, 64 MiB a block.
        (2 * 2**30, "iii", [0, 1, 2, 3]),  # One image is more than a block should be.
        (2 * 28 * 28, "iiviivv", [0, 2, 3, 5, 6, 7]),  # A clip is more, whatever is beside it.
    ],
)
def test_a_block_is_bounded_in_rows_and_in_the_bytes_that_they_may_become(
    max_pixels: int, kinds: str, ends: list[int]
) -> None:
    names = ["video" if kind == "v" else "image" for kind in kinds]
    assert cuts(names, 64, limits(max_pixels), first=64) == ends


def test_the_first_blocks_are_small_and_grow() -> None:
    ends = cuts(["image"] * 60, 20, limits(2 * 28 * 28), first=8)
    assert ends == [0, 8, 20, 38, 58, 60]  # 8, 12, 18 and 20 rows, and what is left.
    ends = cuts(["image"] * 12, 5, limits(2 * 28 * 28), first=8)
    assert ends == [0, 5, 10, 12]  # No more than a block may have.


@given(
    clips=st.lists(st.booleans(), min_size=1, max_size=60),
    max_pixels=st.sampled_from([2 * 28 * 28, 2 * MIB, 2 * 9 * MIB, 2 * 30 * MIB]),
    rows_a_block=st.integers(1, 64),
    first=st.integers(1, 64),
)
def test_no_block_can_take_another_row(
    clips: list[bool], max_pixels: int, rows_a_block: int, first: int
) -> None:
    config = limits(max_pixels)
    most = [config.clip_bytes if clip else config.item_bytes for clip in clips]
    ends = cuts(["video" if clip else "image" for clip in clips], rows_a_block, config, first=first)
    assert (ends[0], ends[-1]) == (0, len(clips))
    rows = min(first, rows_a_block)
    for start, end in pairwise(ends):
        assert 1 <= end - start <= rows
        assert end - start == 1 or sum(most[start:end]) <= 64 * MIB
        full = end - start == rows or sum(most[start : end + 1]) > 64 * MIB
        assert full or end == len(clips)
        rows = min(math.ceil(rows * 3 / 2), rows_a_block)


@given(
    rows_a_block=st.integers(1, 64),
    shard_rows=st.integers(1, 5000),
    preprocess=st.integers(1, 50),
    encode=st.integers(1, 8),
    calls=st.integers(1, 16),
)
def test_the_window_holds_work_for_every_actor_and_one_shard_more(
    rows_a_block: int, shard_rows: int, preprocess: int, encode: int, calls: int
) -> None:
    shards = window(rows_a_block, shard_rows, workers(preprocess, encode), calls=calls)
    wanted = (preprocess + encode * (calls + 1)) * rows_a_block
    assert (shards - 1) * shard_rows > wanted
    assert shards >= 2


def test_a_cluster_of_workers_is_said_in_words() -> None:
    assert str(workers(3)) == "3 preprocess and 1 CPU encoder actors"
    gpu = replace(workers(12, 2), encode_cpus=0, encode_gpus=1)
    assert str(gpu) == "12 preprocess and 2 GPU encoder actors"
