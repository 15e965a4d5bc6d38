"""What the commit adds at `--level frame` and `token`: a row a segment of every embedded item."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import schema, segments
from pipeline.commit import CommitConfig, commit_shard
from pipeline.known import PlanReport
from pipeline.location import digest, join
from pipeline.manifest import Generation, committed, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.segments import segment_table, to_parquet
from pipeline.storage import storage_for

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
Plan = Callable[..., Generation]
Commit = Callable[..., list[Marker]]
Row = dict[str, Any]

FOLDERS = {"frame": "frames", "token": "tokens"}
SHARD = "g000000-00000000"


@pytest.fixture
def planned(write_manifest: Callable[..., str], freeze: Freeze) -> Plan:
    """Four items with a label, in shards of four."""

    def plan(output: str, **options: Any) -> Generation:
        columns = {"uri": [f"/media/{n}.jpg" for n in range(4)], "label": ["a/b"] * 4}
        _, generation = freeze(output, write_manifest(columns), shard_rows=4, **options)
        assert generation is not None
        return generation

    return plan


def expected(output: str, generation: Generation, level: str) -> list[Row]:
    """Of a still, a failed item, a clip and a still: what `encoded_block` makes of them."""
    (shard,) = shards_of(generation, without=set())
    items = read_shard(output, shard)
    rows = []
    for n, s in [(0, 0), (2, 0), (2, 1), (2, 2), (3, 0)]:
        row: Row = {
            "item_id": items["item_id"][n].as_py(),
            "uri": f"/media/{n}.jpg",
            "segment": s,
            "timestamp_s": s / 2 if n == 2 else None,
            "embedding": [n + s / 8] * 4,
        }
        if level == "token":
            row |= {"grid_h": 2, "grid_w": 2 * (n + 1)}
            row["tokens"] = [[n + s / 8 + k / 64] * 4 for k in range(n + 1)]
        rows.append(row)
    return rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("level", FOLDERS)
def test_every_segment_of_an_embedded_item_has_a_row(
    root: str, planned: Plan, commit: Commit, level: str, dtype: str
) -> None:
    generation = planned(root)
    options = {"level": level, "dtype": dtype}
    (marker,) = commit(root, generation, failed={1: "corrupt"}, clips={1, 2}, **options)
    name = f"{FOLDERS[level]}/{SHARD}.parquet"
    data = storage_for(root).read(join(root, name))
    found = pq.read_table(io.BytesIO(data))
    vector = schema.embedding_type(4, dtype)
    assert found.schema.equals(schema.segments(vector, level))
    assert found.to_pylist() == expected(root, generation, level)
    assert [(stored.name, stored.rows) for stored in marker.objects] == [
        (f"embeddings/{SHARD}.parquet", 3),
        (f"errors/{SHARD}.parquet", 1),
        (name, 5),
    ]
    assert (marker.objects[2].size_bytes, marker.objects[2].checksum) == (len(data), digest(data))
    assert (marker.embedded, marker.tokens) == (3, 1 + 9 + 4)


@pytest.mark.parametrize("level", FOLDERS)
def test_what_an_item_has_is_the_same_at_every_level(
    tmp_path: Path, planned: Plan, commit: Commit, level: str
) -> None:
    names = [f"embeddings/{SHARD}.parquet", f"errors/{SHARD}.parquet"]
    contents = []
    for each in ("item", level):
        output = tmp_path / each
        (marker,) = commit(str(output), planned(str(output)), clips={2}, level=each)
        contents.append([(output / name).read_bytes() for name in names])
        assert [o.name for o in marker.objects][:2] == names
    assert contents[0] == contents[1]


@pytest.mark.parametrize("level", FOLDERS)
def test_the_object_is_written_though_nothing_is_embedded(
    tmp_path: Path, planned: Plan, commit: Commit, level: str
) -> None:
    output = str(tmp_path / "out")
    failed = dict.fromkeys(range(4), "corrupt")
    (marker,) = commit(output, planned(output), failed=failed, level=level)
    found = pq.read_table(f"{output}/{FOLDERS[level]}/{SHARD}.parquet")
    assert found.num_rows == marker.objects[2].rows == 0
    assert found.schema.equals(schema.segments(schema.embedding_type(4, "float32"), level))


def test_a_partition_is_a_folder_of_segments_too(
    tmp_path: Path, planned: Plan, commit: Commit
) -> None:
    output = tmp_path / "out"
    commit(str(output), planned(str(output), partition_by=("label",)), level="token")
    names = sorted(str(path.relative_to(output)) for path in output.glob("[a-z]*/**/*.parquet"))
    assert names == [
        f"embeddings/label=a%2Fb/{SHARD}.parquet",
        f"errors/{SHARD}.parquet",
        f"tokens/label=a%2Fb/{SHARD}.parquet",
    ]


def test_what_a_killed_commit_left_is_overwritten(
    tmp_path: Path, planned: Plan, commit: Commit
) -> None:
    output = tmp_path / "out"
    generation = planned(str(output))
    commit(str(output), generation, clips={2}, level="frame", failed={3: "empty"})
    (output / f"_patchflow/commits/{SHARD}.json").unlink()
    (output / f"frames/{SHARD}.parquet").write_bytes(b"rubbish")
    assert committed(str(output)) == set()
    commit(str(output), generation, level="frame", clips={0})
    found = pq.read_table(output / f"frames/{SHARD}.parquet")
    assert found["segment"].to_pylist() == [0, 1, 2, 0, 0, 0]


def test_a_shard_of_several_blocks_is_one_table(
    tmp_path: Path,
    planned: Plan,
    commit: Commit,
    commit_config: Callable[..., CommitConfig],
    encoded_block: Callable[..., pa.Table],
) -> None:
    output = str(tmp_path / "out")
    generation = planned(output)
    (shard,) = shards_of(generation, without=set())
    block = encoded_block(read_shard(output, shard), {1: "corrupt"}, level="token", clips={1, 2})
    # As the engine hands it over: pieces of larger blocks.
    double = pa.concat_tables([block, block]).combine_chunks()
    pieces = [double.slice(start, 1) for start in (4, 1, 6, 3)]
    commit_shard(pa.concat_tables(pieces), commit_config(output, generation, level="token"))
    found = pq.read_table(f"{output}/tokens/{SHARD}.parquet")
    assert found.to_pylist() == expected(output, generation, "token")


@pytest.fixture
def output(tmp_path: Path, planned: Plan, commit: Commit) -> Callable[[str], str]:
    """An output of a level: items 0, 2 and 3 embedded, 2 of them a clip."""

    def make(level: str) -> str:
        place = str(tmp_path / level)
        commit(place, planned(place), failed={1: "corrupt"}, clips={2}, level=level)
        return f"{place}/{FOLDERS[level]}"

    return make


FRAMES = [
    (f"/media/{n}.jpg", s, s / 2 if n == 2 else None, [n + s / 8] * 4)
    for n, s in [(0, 0), (2, 0), (2, 1), (2, 2), (3, 0)]
]
TOKENS = [[[vector[0] + k / 64] * 4 for k in range(int(vector[0]) + 1)] for *_, vector in FRAMES]
GRIDS = [(2, 2 * (int(vector[0]) + 1)) for *_, vector in FRAMES]


def lists(values: Any) -> Any:
    """Nested arrays and tuples of whatever kind as lists of numbers."""
    if isinstance(values, (list, tuple, np.ndarray)):
        return [lists(value) for value in values]
    return float(values)


def test_duckdb_reads_segments_and_tokens(output: Callable[[str], str]) -> None:
    with duckdb.connect() as connection:
        query = "SELECT uri, segment, timestamp_s, embedding FROM '{}/**/*.parquet'"
        frames = connection.sql(query.format(output("frame"))).fetchall()
        query = "SELECT grid_h, grid_w, tokens, typeof(tokens) FROM '{}/**/*.parquet'"
        tokens = connection.sql(query.format(output("token"))).fetchall()
    assert [(*row[:3], lists(row[3])) for row in frames] == FRAMES
    assert [row[:2] for row in tokens] == GRIDS
    assert [lists(row[2]) for row in tokens] == TOKENS
    assert {row[3] for row in tokens} <= {"FLOAT[][]", "FLOAT[4][]"}


def test_polars_reads_segments_and_tokens(output: Callable[[str], str]) -> None:
    frames = pl.read_parquet(f"{output('frame')}/**/*.parquet")
    assert frames.schema["embedding"] == pl.Array(pl.Float32, 4)
    names = ("uri", "segment", "timestamp_s", "embedding")
    rows = frames.select(names).rows()
    assert [(*row[:3], lists(row[3])) for row in rows] == FRAMES
    tokens = pl.read_parquet(f"{output('token')}/**/*.parquet")
    assert tokens.select("grid_h", "grid_w").rows() == GRIDS
    assert [lists(row.to_list()) for row in tokens["tokens"]] == TOKENS


def test_pandas_reads_segments_and_tokens(output: Callable[[str], str]) -> None:
    frames = pd.read_parquet(output("frame"))
    columns = (frames[name] for name in ("uri", "segment", "timestamp_s", "embedding"))
    rows = [
        (uri, segment, None if np.isnan(seconds) else seconds, vector.tolist())
        for uri, segment, seconds, vector in zip(*columns, strict=True)
    ]
    assert rows == FRAMES
    tokens = pd.read_parquet(output("token"))
    assert [*zip(tokens["grid_h"], tokens["grid_w"], strict=True)] == GRIDS
    assert [lists(row) for row in tokens["tokens"]] == TOKENS


def test_pyarrow_reads_segments_and_tokens(output: Callable[[str], str]) -> None:
    frames = ds.dataset(output("frame")).to_table().to_pylist()
    names = ("uri", "segment", "timestamp_s", "embedding")
    assert [tuple(row[name] for name in names) for row in frames] == FRAMES
    tokens = ds.dataset(output("token")).to_table()
    assert tokens.schema.field("tokens").type == pa.list_(pa.list_(pa.float16(), 4))
    assert [lists(row) for row in tokens["tokens"].to_pylist()] == TOKENS


def test_row_groups_are_bounded_in_bytes_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
    manifest_rows: Callable[..., pa.Table],
    encoded_block: Callable[..., pa.Table],
) -> None:
    rows = manifest_rows([f"/{n}.jpg" for n in range(6)])
    block = encoded_block(rows, level="token", clips={1, 4})
    table = segment_table(block, schema.embedding_type(4, "float32"), "token")
    # A row is 16 bytes and 8 a token: 24, 3 of 32, 40, 48, 3 of 56 and 64.
    monkeypatch.setattr(segments, "_ROW_GROUP_BYTES", 100)
    data = to_parquet(table)
    file = pq.ParquetFile(io.BytesIO(data))
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sizes == [3, 2, 1, 1, 1, 1, 1]
    assert file.read().equals(table)
    monkeypatch.setattr(segments, "_ROW_GROUP_BYTES", 1)
    assert pq.ParquetFile(io.BytesIO(to_parquet(table))).num_row_groups == 10


def test_the_table_is_a_view_of_the_blocks(
    manifest_rows: Callable[..., pa.Table], encoded_block: Callable[..., pa.Table]
) -> None:
    rows = manifest_rows([f"/{n}.jpg" for n in range(3)])
    block = encoded_block(rows, {0: "corrupt"}, level="token", clips={1})
    table = segment_table(block, schema.embedding_type(4, "float32"), "token")
    for name, source in (("embedding", "segment_embeddings"), ("tokens", "token_embeddings")):
        values = table[name].chunk(0)
        while isinstance(values, (pa.ListArray, pa.FixedSizeListArray)):
            values = values.values
        theirs = block[source].chunk(0).values
        assert values.buffers()[1].address == theirs.buffers()[1].address


def test_a_block_may_hold_more_values_than_32_bits_count(
    manifest_rows: Callable[..., pa.Table], encoded_block: Callable[..., pa.Table]
) -> None:
    width, tokens = 2048, 2**20 + 2
    block = encoded_block(manifest_rows(["/0.jpg", "/1.jpg"]), width=width, level="token")
    # Memory that is never touched is never there.
    values = pa.array(np.zeros(tokens * width, np.float16))
    lists = pa.LargeListArray.from_arrays([0, width, tokens * width], values)
    for name, column in (
        ("token_embeddings", lists),
        ("num_tokens", pa.array([1, tokens - 1], pa.int32())),
    ):
        block = block.set_column(block.schema.get_field_index(name), name, column)
    assert len(values) > 2**31
    table = segment_table(block, schema.embedding_type(width, "float32"), "token")
    column = table["tokens"].chunk(0)
    assert column.offsets.to_pylist() == [0, 1, tokens]
    assert len(column.values.values) == tokens * width
