"""The arithmetic of blocks, and the nesting that keeps them apart."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schema
from pipeline.build import call_limits, nest, window
from pipeline.preprocess import unnest
from pipeline.workers import Workers
from tests.support.preprocessing import preprocess_config

Rows = Callable[..., pa.Table]


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
        most_commits=1,
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
    limits = call_limits(items, workers(preprocess), "cpu", preprocess_config())
    assert (limits.rows, limits.first_rows) == (rows, min(rows, 8))


@given(
    rows=st.integers(1, 64),
    shard_rows=st.integers(1, 5000),
    preprocess=st.integers(1, 50),
    encode=st.integers(1, 8),
    calls=st.integers(1, 16),
)
def test_the_window_holds_work_for_every_actor_and_one_shard_more(
    rows: int, shard_rows: int, preprocess: int, encode: int, calls: int
) -> None:
    shards = window(rows, shard_rows, workers(preprocess, encode), calls=calls)
    wanted = (preprocess + encode * (calls + 1)) * rows
    assert (shards - 1) * shard_rows > wanted
    assert shards >= 2


def test_a_cluster_of_workers_is_said_in_words() -> None:
    assert str(workers(3)) == "3 preprocess and 1 CPU encoder actors"
    gpu = replace(workers(12, 2), encode_cpus=0, encode_gpus=1)
    assert str(gpu) == "12 preprocess and 2 GPU encoder actors"
