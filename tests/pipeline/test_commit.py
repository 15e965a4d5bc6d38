"""The commit: exactly one shard in, its objects and then its marker out; or nothing at all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.commit import CommitConfig, commit_shard
from pipeline.errors import InternalError, StorageError
from pipeline.known import PlanReport
from pipeline.location import digest, join
from pipeline.manifest import Generation, committed, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.sealed import seal, unseal
from pipeline.storage import storage_for

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]
Block = Callable[..., pa.Table]
Commit = Callable[..., list[Marker]]
Config = Callable[[str, Generation], CommitConfig]
Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def planned(write_manifest: WriteManifest, freeze: Freeze) -> Callable[..., Generation]:
    """Five items with a label and a score, in shards of three."""

    def plan(output: str, **options: Any) -> Generation:
        columns = {
            "uri": [f"/media/{n}.jpg" for n in range(5)],
            "label": ["cat", "cat", "a/b", "cat", None],
            "score": [0.0, 0.5, 1.0, None, 2.0],
        }
        _, generation = freeze(output, write_manifest(columns), shard_rows=3, **options)
        assert generation is not None
        return generation

    return plan


def first_block(output: str, generation: Generation, encoded_block: Block) -> pa.Table:
    shard = next(iter(shards_of(generation, without=set())))
    return encoded_block(read_shard(output, shard), {1: "corrupt"})


def test_a_shards_rows_go_to_embeddings_and_errors(
    root: str, planned: Callable[..., Generation], commit: Commit
) -> None:
    generation = planned(root)
    (marker,) = commit(root, generation, [0], failed={1: "corrupt"})
    store = storage_for(root)
    good = pq.read_table(io.BytesIO(store.read(f"{root}/embeddings/g000000-00000000.parquet")))
    bad = pq.read_table(io.BytesIO(store.read(f"{root}/errors/g000000-00000000.parquet")))
    assert good.column_names == [*schema.EMBEDDINGS, "label", "score"]
    assert good.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert good.schema.field("grid_thw").type == pa.list_(pa.int32(), 3)
    assert good.to_pylist() == [
        {
            "item_id": good["item_id"][row].as_py(),
            "uri": f"/media/{n}.jpg",
            "version": None,
            "media_type": "image",
            "content_hash": f"hash{n}",
            "generation": 0,
            "width": 28 * (n + 1),
            "height": 28,
            "num_frames": None,
            "duration_s": None,
            "grid_thw": [1, 2, 2 * (n + 1)],
            "num_tokens": n + 1,
            "embedding": [float(n)] * 4,
            "label": label,
            "score": float(n) / 2,
        }
        for row, (n, label) in enumerate([(0, "cat"), (2, "a/b")])
    ]
    assert bad.schema.equals(schema.ERRORS)
    assert bad.drop_columns("item_id").to_pylist() == [
        {
            "uri": "/media/1.jpg",
            "version": None,
            "media_type": "image",
            "stage": "preprocess",
            "error_code": "corrupt",
            "error_message": "broken",
            "attempts": 1,
        }
    ]
    assert (marker.rows, marker.embedded, marker.failed) == (3, 2, 1)


def test_the_marker_says_what_was_written(
    root: str, planned: Callable[..., Generation], commit: Commit
) -> None:
    (marker,) = commit(root, planned(root), [0], failed={0: "empty", 1: "corrupt"})
    store = storage_for(root)
    assert Marker.from_json(store.read(f"{root}/_patchflow/commits/{marker.shard}.json")) == marker
    assert Marker.from_json(marker.to_json()) == marker
    assert (marker.shard, marker.device, marker.kernels) == ("g000000-00000000", "cpu", "")
    assert marker.errors == {"corrupt": 1, "empty": 1}
    assert marker.tokens == 3
    assert {"python", "torch", "pillow", "numpy", "pyarrow", "ray"} <= set(marker.versions)
    assert [(stored.name, stored.rows) for stored in marker.objects] == [
        ("embeddings/g000000-00000000.parquet", 1),
        ("errors/g000000-00000000.parquet", 2),
    ]
    for stored in marker.objects:
        data = store.read(join(root, stored.name))
        assert (stored.size_bytes, stored.checksum) == (len(data), digest(data))


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (["compiled varlen"] * 3, ""),
        (["plain sdpa"] * 3, "plain sdpa"),
        (["compiled varlen", "plain math", "compiled varlen"], "compiled varlen, plain math"),
    ],
)
def test_the_marker_says_with_what_other_kernels_a_gpu_computed(
    tmp_path: Path,
    planned: Callable[..., Generation],
    begin: Callable[..., None],
    encoded_block: Block,
    commit_config: Config,
    used: list[str],
    said: str,
) -> None:
    root = str(tmp_path)
    begin(root)
    generation = planned(root)
    rows = first_block(root, generation, encoded_block)
    at = rows.schema.get_field_index("device_kernels")
    rows = rows.set_column(at, rows.schema.field(at), pa.array(used))
    marker = Marker.from_json(commit_shard(rows, commit_config(root, generation)))
    assert marker.kernels == said


def test_a_marker_without_kernels_is_one_of_an_earlier_version(
    root: str, planned: Callable[..., Generation], commit: Commit
) -> None:
    (marker,) = commit(root, planned(root), [0])
    earlier = unseal(marker.to_json())
    del earlier["kernels"]
    assert Marker.from_json(seal(earlier)) == marker


@pytest.mark.parametrize("failed", [{}, {0: "empty", 1: "empty", 2: "empty"}])
def test_a_shard_writes_both_objects_whatever_became_of_its_items(
    tmp_path: Path,
    planned: Callable[..., Generation],
    commit: Commit,
    failed: dict[int, str],
) -> None:
    output = str(tmp_path / "out")
    (marker,) = commit(output, planned(output), [0], failed=failed)
    assert [stored.rows for stored in marker.objects] == [3 - len(failed), len(failed)]
    good = pq.read_table(f"{output}/embeddings/g000000-00000000.parquet")
    bad = pq.read_table(f"{output}/errors/g000000-00000000.parquet")
    assert (good.num_rows, bad.num_rows) == (3 - len(failed), len(failed))
    assert good.schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert marker.tokens == (0 if failed else 6)


def test_committing_again_leaves_the_shard_as_it_is(
    tmp_path: Path, planned: Callable[..., Generation], commit: Commit, files: Files
) -> None:
    output = str(tmp_path / "out")
    generation = planned(output)
    first = commit(output, generation, [0])
    before = files(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    # Even if the block would now say something else.
    assert commit(output, generation, [0], failed={0: "corrupt"}) == first
    assert files(tmp_path) == before
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}


def test_what_a_killed_commit_left_is_overwritten(
    tmp_path: Path, planned: Callable[..., Generation], commit: Commit, files: Files
) -> None:
    output = str(tmp_path / "out")
    generation = planned(output)
    commit(output, generation, [0], failed={2: "corrupt"})
    (tmp_path / "out/_patchflow/commits/g000000-00000000.json").unlink()
    (tmp_path / "out/errors/g000000-00000000.parquet").write_bytes(b"rubbish")
    (marker,) = commit(output, generation, [0])
    assert (marker.embedded, marker.failed) == (3, 0)
    assert pq.read_table(f"{output}/embeddings").num_rows == 3
    assert pq.read_table(f"{output}/errors/g000000-00000000.parquet").num_rows == 0


@pytest.mark.parametrize("name", ["embeddings", "errors", "_patchflow/commits"])
def test_a_commit_that_fails_in_the_middle_leaves_the_shard_open(
    tmp_path: Path,
    planned: Callable[..., Generation],
    commit: Commit,
    name: str,
) -> None:
    output = tmp_path / "out"
    generation = planned(str(output))
    (output / name).write_bytes(b"in the way")
    with pytest.raises(StorageError, match=name):
        commit(str(output), generation, [0])
    (output / name).unlink()
    assert committed(str(output)) == set()
    commit(str(output), generation, [0])
    assert committed(str(output)) == {"g000000-00000000"}


def two_shards(block: pa.Table) -> pa.Table:
    names = ["g000000-00000000"] * 2 + ["g000000-00000001"]
    return block.set_column(block.schema.get_field_index("shard"), "shard", pa.array(names))


def one_row_less(block: pa.Table) -> pa.Table:
    return block.slice(0, 2)


def one_row_twice(block: pa.Table) -> pa.Table:
    return block.take([0, 1, 1])


def one_item_lost(block: pa.Table) -> pa.Table:
    ids = [*block["item_id"].to_pylist()[:2], None]
    return block.set_column(0, "item_id", pa.array(ids, pa.string()))


def one_row_more(block: pa.Table) -> pa.Table:
    return pa.concat_tables([block, block.slice(0, 1)])


def no_rows(block: pa.Table) -> pa.Table:
    return block.slice(0, 0)


def foreign_shard(block: pa.Table) -> pa.Table:
    names = pa.array(["g000009-00000000"] * 3)
    return block.set_column(block.schema.get_field_index("shard"), "shard", names)


@pytest.mark.parametrize(
    "spoil",
    [
        two_shards,
        one_row_less,
        one_row_more,
        one_row_twice,
        one_item_lost,
        no_rows,
        foreign_shard,
    ],
)
def test_a_block_that_is_not_exactly_one_shard_writes_nothing(
    tmp_path: Path,
    planned: Callable[..., Generation],
    encoded_block: Block,
    commit_config: Config,
    files: Files,
    spoil: Callable[[pa.Table], pa.Table],
) -> None:
    output = str(tmp_path / "out")
    generation = planned(output)
    block = first_block(output, generation, encoded_block)
    before = files(tmp_path)
    with pytest.raises(InternalError) as caught:
        commit_shard(spoil(block), commit_config(output, generation))
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("count", "most"), [(30, 10), (1500, 15)])
def test_a_shard_of_which_too_many_items_could_not_be_read_stays_open(
    root: str,
    write_manifest: Callable[..., str],
    freeze: Callable[..., tuple[PlanReport, Generation | None]],
    commit: Commit,
    count: int,
    most: int,
) -> None:
    names = [f"/media/{n}.jpg" for n in range(count)]
    _, generation = freeze(root, write_manifest({"uri": names}), shard_rows=count)
    assert generation is not None
    unread = dict.fromkeys(range(most + 1), "read_failed")
    with pytest.raises(StorageError, match=f"{most + 1} of {count:,} items of g000000-00000000"):
        commit(root, generation, [0], failed=unread)
    assert committed(root) == set()
    # One of them fewer is, and so is any number of what is wrong with the items themselves.
    corrupt = dict.fromkeys(range(most, 29), "corrupt")
    (marker,) = commit(root, generation, [0], failed=unread | {most: "access_denied"} | corrupt)
    assert marker.errors["read_failed"] == most


def test_a_short_shard_is_whole_with_fewer_rows(
    tmp_path: Path, planned: Callable[..., Generation], commit: Commit
) -> None:
    output = str(tmp_path / "out")
    (marker,) = commit(output, planned(output), [1])
    assert (marker.shard, marker.rows, marker.embedded) == ("g000000-00000001", 2, 2)
    found = pq.read_table(f"{output}/embeddings/g000000-00000001.parquet")
    assert found["uri"].to_pylist() == ["/media/3.jpg", "/media/4.jpg"]


def test_a_partition_is_a_folder_and_its_column_is_in_the_folders_name_alone(
    tmp_path: Path, planned: Callable[..., Generation], commit: Commit
) -> None:
    output = tmp_path / "out"
    commit(str(output), planned(str(output), partition_by=("label",)))
    names = sorted(str(path.relative_to(output)) for path in (output / "embeddings").rglob("*.*"))
    assert names == [
        "embeddings/label=__HIVE_DEFAULT_PARTITION__/g000000-00000002.parquet",
        "embeddings/label=a%2Fb/g000000-00000001.parquet",
        "embeddings/label=cat/g000000-00000000.parquet",
    ]
    assert sorted(path.name for path in (output / "errors").iterdir()) == [
        f"g000000-0000000{n}.parquet" for n in range(3)
    ]
    columns = pq.ParquetFile(output / names[2]).schema_arrow.names
    assert columns == [*schema.EMBEDDINGS, "score"]


EXPECTED = [(f"/media/{n}.jpg", [float(n % 3)] * 4) for n in (0, 2, 3)]


@pytest.fixture
def output(tmp_path: Path, planned: Callable[..., Generation], commit: Commit) -> str:
    """Items 0, 2 and 3 embedded, 1 and 4 failed."""
    place = str(tmp_path / "out")
    commit(place, planned(place), failed={1: "corrupt"})
    return place


def test_duckdb_reads_the_output(output: str) -> None:
    with duckdb.connect() as connection:
        found = connection.sql(
            f"SELECT uri, embedding, typeof(embedding) FROM '{output}/embeddings/**/*.parquet'"
        ).fetchall()
    assert sorted((uri, list(vector)) for uri, vector, _ in found) == EXPECTED
    assert {kind for *_, kind in found} <= {"FLOAT[]", "FLOAT[4]"}


def test_polars_reads_the_output(output: str) -> None:
    found = pl.read_parquet(f"{output}/embeddings/**/*.parquet")
    assert found.schema["embedding"] == pl.Array(pl.Float32, 4)
    rows = zip(found["uri"].to_list(), found["embedding"].to_list(), strict=True)
    assert sorted((uri, list(vector)) for uri, vector in rows) == EXPECTED


def test_pandas_reads_the_output(output: str) -> None:
    found = pd.read_parquet(f"{output}/embeddings")
    rows = zip(found["uri"], found["embedding"], strict=True)
    assert sorted((uri, vector.tolist()) for uri, vector in rows) == EXPECTED


def test_pyarrow_reads_the_output(output: str) -> None:
    found = ds.dataset(f"{output}/embeddings").to_table().to_pylist()
    assert sorted((row["uri"], row["embedding"]) for row in found) == EXPECTED


def test_readers_find_the_partition_columns_again(
    tmp_path: Path, planned: Callable[..., Generation], commit: Commit
) -> None:
    output = str(tmp_path / "parted")
    commit(output, planned(output, partition_by=("label",)))
    labels = ["cat", "cat", "a/b", "cat", None]
    expected = [(f"/media/{n}.jpg", label) for n, label in enumerate(labels)]
    with duckdb.connect() as connection:
        duck = connection.sql(
            f"SELECT uri, label FROM read_parquet('{output}/embeddings/**/*.parquet', "
            "hive_partitioning = true) ORDER BY uri"
        ).fetchall()
    assert duck == expected
    lazy = pl.scan_parquet(f"{output}/embeddings/**/*.parquet", hive_partitioning=True)
    assert lazy.select("uri", "label").sort("uri").collect().rows() == expected
    arrow = ds.dataset(f"{output}/embeddings", partitioning="hive").to_table().sort_by("uri")
    assert [(row["uri"], row["label"]) for row in arrow.to_pylist()] == expected


def test_half_precision_is_stored_as_such(
    tmp_path: Path,
    planned: Callable[..., Generation],
    encoded_block: Block,
    commit_config: Config,
) -> None:
    output = str(tmp_path / "out")
    generation = planned(output)
    shard = next(iter(shards_of(generation, without=set())))
    block = encoded_block(read_shard(output, shard), dtype="float16")
    commit_shard(block, commit_config(output, generation, dtype="float16"))
    found = pq.read_table(f"{output}/embeddings")
    assert found.schema.field("embedding").type == pa.list_(pa.float16(), 4)
    assert [float(row[0]) for row in found["embedding"].to_pylist()] == [0.0, 1.0, 2.0]
