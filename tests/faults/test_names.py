"""Hostile partition values and columns, a million shards: inside the output, and whole again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import layout
from pipeline.manifest import committed, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.verify import verify

HOSTILE = [
    "../../escape",
    "..",
    ".",
    "/etc",
    "a/b",
    "a\\b",
    "nul\0nul",
    "%2F",
    "%2f..%2f",
    "new\nline\r\n",
    "'single' \"double\" `back`",
    " leading and trailing ",
    "k=v",
    "?#&;*[]{}",
    layout.NULL,
    "größe",
    "e\u0301",
    "\u00e9",
    "\u202egnp.exe",
    "\U0001f9ff" * 20,
    "~+~",
    ".hidden",
    "_hidden",
    "x" * 1024,
    "x" * 1023 + "y",
    "\U0001f9ff" * 256,
    None,
]
# Every text that a reader gets from a folder's name: short enough to be one, and not null's.
PLAIN = [v for v in HOSTILE if v is None or (len(quote(v)) < 190 and v != layout.NULL)]
COLUMNS = ["../up", ".hidden", "_hidden", "a/b", "k=v", "line\nbreak", "größe", "%2F"]


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), unique=True))
def test_folders_are_one_plain_name_each_and_no_two_values_share_one(values: list[Any]) -> None:
    names = [layout.partition({"key": value}) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert "/" not in name
        assert len(name.encode()) <= 200
        assert name.isascii() and name.isprintable()
        assert name.startswith("key=")


@pytest.fixture
def hostile(tmp_path: Path, write_manifest, freeze, commit) -> Callable[[list[Any]], Any]:
    """An output with an item for each value, partitioned by it, all committed."""

    def make(values: list[Any], column: str = "label") -> Any:
        uris = [f"/media/{n}.jpg" for n in range(len(values))]
        location = write_manifest({"uri": uris, column: pa.array(values, pa.string())})
        output = tmp_path / "deep" / "er" / "output"
        _, generation = freeze(str(output), location, partition_by=(column,))
        commit(str(output), generation)
        return output, generation, dict(zip(uris, values, strict=True))

    return make


def test_hostile_values_stay_inside_and_come_back_byte_for_byte(
    hostile, tmp_path: Path, score
) -> None:
    output, generation, values = hostile(HOSTILE)
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in written if output not in path.parents} == {tmp_path / "items.parquet"}
    # Each shard's marker holds its value whole, and so does the manifest.
    found = {}
    for shard in shards_of(generation, without=set()):
        rows = read_shard(str(output), shard)
        marker = Marker.from_json((output / layout.marker(shard.id)).read_bytes())
        assert rows["label"].to_pylist() == [marker.partition["label"]] * shard.rows
        table = pq.ParquetFile(output / marker.objects[0].name).read()
        found |= dict.fromkeys(table["uri"].to_pylist(), marker.partition["label"])
    assert found == values
    score.rows(values, list(found))
    score.objects(verify(str(output)).breaches)


def test_readers_get_the_same_values_from_the_folders_names(hostile) -> None:
    output, _, values = hostile(PLAIN)
    folder = output / "embeddings"
    arrow = ds.dataset(folder, partitioning="hive").to_table(columns=["uri", "label"])
    assert {r["uri"]: r["label"] for r in arrow.to_pylist()} == values
    duck = duckdb.sql(
        f"SELECT uri, label FROM read_parquet('{folder}/**/*.parquet', hive_partitioning=true, "
        "hive_types={'label': VARCHAR})"
    )
    assert dict(duck.fetchall()) == values


def test_pandas_gets_them_too(hostile) -> None:
    # But for null: pyarrow has no dictionaries of folders' names that hold one.
    output, _, values = hostile([value for value in PLAIN if value is not None])
    frame = pd.read_parquet(output / "embeddings", columns=["uri", "label"])
    assert dict(zip(frame["uri"], frame["label"].astype(str), strict=True)) == values


@pytest.mark.parametrize("column", COLUMNS)
def test_hostile_column_names_are_folders_of_the_output_too(column: str, hostile, score) -> None:
    output, _, values = hostile(["x", "y", None], column)
    files = sorted(output.rglob("embeddings/**/*.parquet"))
    assert [path.parents[1] for path in files] == [output / "embeddings"] * 3
    table = ds.dataset(output / "embeddings", partitioning="hive").to_table()
    assert dict(zip(table["uri"].to_pylist(), table[column].to_pylist(), strict=True)) == values
    score.objects(verify(str(output)).breaches)


def test_shards_of_any_generation_have_names_of_their_own() -> None:
    """Among others names of which one is another's beginning, were they not padded."""
    pairs = [(g, i) for g in (0, 1, 10, 100) for i in (0, 1, 10, 11, 100, 111, 1_111_111)]
    names = [layout.shard(*pair) for pair in pairs]
    assert len(set(names)) == len(names)
    assert not any(a != b and b.startswith(a) for a in names for b in names)
    assert [layout.parse_shard(name) for name in names] == pairs


@pytest.mark.whole
def test_a_million_commits_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / layout.COMMITS
    folder.mkdir(parents=True)
    expected = {layout.shard(g, i) for g in (0, 1) for i in range(500_000)}
    for name in expected:
        (folder / f"{name}.json").touch()
    assert committed(str(tmp_path)) == expected
