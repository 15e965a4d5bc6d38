"""`embed` on Parquet manifests, with the caller's columns and partitions, in two generations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

Row = dict[str, Any]
SHARD_ROWS = 4
# By the split: items of the first manifest, then of the second. Few are multiples of a shard.
SPLITS = {"train": (9, 5), "dev / test": (5, 0), "50%": (1, 8), None: (2, 3)}


@pytest.fixture(scope="module")
def listed(collection) -> list[list[Row]]:
    """The caller's rows of two manifests; the splits come in turns."""
    photos = iter(collection.good)
    both: list[list[Row]] = []
    for half in range(2):
        left = {split: counts[half] for split, counts in SPLITS.items()}
        rows: list[Row] = []
        while any(left.values()):
            for split in [split for split, count in left.items() if count]:
                left[split] -= 1
                number = len(rows)
                rows.append(
                    {
                        "uri": str(next(photos)),
                        "label": None if number % 5 == 0 else f"größe {number}",
                        "split": split,
                        "tags": ["a", "b"][: number % 3],
                        "score": number / 8,
                    }
                )
        both.append(rows)
    both[1].append(both[1][-1] | {"uri": str(collection.folder / "never there.jpg")})
    both[1].append(both[1][-1] | {"uri": str(collection.folder / "empty.jpg")})
    return both


def write(rows: list[Row], path: Path) -> Path:
    types = {"uri": pa.string(), "label": pa.string(), "split": pa.string()}
    schema = pa.schema([*types.items(), ("tags", pa.list_(pa.string())), ("score", pa.float64())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@pytest.fixture(scope="module")
def run(listed, collection, commands, run_embed, clean_run, tmp_path_factory) -> Any:
    """The first manifest planned only, then both embedded: short shards in the very middle."""
    folder = tmp_path_factory.mktemp("manifests")
    output, root = folder / "output", ("--root", collection.folder)
    frozen = commands.run(
        "plan",
        write(listed[0], folder / "first.parquet"),
        *("--output", output, "--shard-rows", SHARD_ROWS, "--partition-by", "split", *root),
    )
    assert frozen.code == 0, str(frozen)
    assert "frozen as generation 0" in frozen.out
    second = write(listed[1], folder / "second.parquet")
    found = run_embed(output, second, *clean_run.args[-2:], *root)
    assert found.done.code == 0, str(found.done)
    return found


def expected(listed, alone) -> list[Row]:
    rows = []
    for generation, half in enumerate(listed):
        for row in half:
            path = Path(row["uri"])
            if path.name not in ("never there.jpg", "empty.jpg"):
                own = {name: row[name] for name in ("label", "split", "tags", "score")}
                found = alone(path) | {"generation": generation, "version": None}
                rows.append(found | own)
    return rows


def test_rows_carry_the_caller_s_columns(run, listed, alone, assert_rows) -> None:
    rows = [
        {name: value for name, value in row.items() if name != "split"}
        for row in expected(listed, alone)
    ]
    assert_rows(run.rows, rows, but=("version",))


def test_versions_are_those_that_were_seen(run, listed, alone) -> None:
    seen = {row["uri"]: row["version"] for row in run.rows}
    assert seen == {uri: alone(Path(uri))["version"] for uri in seen}


def test_every_item_gets_exactly_one_terminal_row(run, listed) -> None:
    assert run.output.terminal() == sorted(row["uri"] for half in listed for row in half)
    assert {Path(row["uri"]).name: row["error_code"] for row in run.errors} == {
        "empty.jpg": "empty",
        "never there.jpg": "not_found",
    }


def test_short_shards_in_mid_stream_are_exact(run) -> None:
    folder = run.output.folder / "_patchflow"
    generations = [
        json.loads(path.read_text()) for path in sorted((folder / "manifest").glob("*.json"))
    ]
    planned = {
        f"g{g['number']:06d}-{index:08d}": g["short_shards"].get(str(index), SHARD_ROWS)
        for g in generations
        for index in range(g["shards"])
    }
    lengths = list(planned.values())
    first_short, last_full = (
        next(i for i, rows in enumerate(lengths) if rows < SHARD_ROWS),
        max(i for i, rows in enumerate(lengths) if rows == SHARD_ROWS),
    )
    assert sum(rows < SHARD_ROWS for rows in lengths[first_short:last_full]) >= 4
    markers = [json.loads(path.read_text()) for path in sorted((folder / "commits").iterdir())]
    assert {marker["shard"]: marker["rows"] for marker in markers} == planned


def partitioned(rows: list[Row]) -> list[tuple[str, str | None, str | None]]:
    return sorted((r["uri"], r["split"], r["label"]) for r in rows)


def key(row: tuple[Any, ...]) -> str:
    return str(row[0])


def test_partitions_are_read_back_by_pyarrow_duckdb_and_polars(run, listed, alone) -> None:
    folder = run.output.folder / "embeddings"
    wanted = sorted(
        ((r["uri"], r["split"], r["label"], r["score"]) for r in expected(listed, alone)), key=key
    )
    names = ["uri", "split", "label", "score"]
    hive = ds.partitioning(pa.schema([("split", pa.string())]), flavor="hive")
    table = ds.dataset(folder, format="parquet", partitioning=hive).to_table(columns=names)
    assert sorted((tuple(row.values()) for row in table.to_pylist()), key=key) == wanted
    with duckdb.connect() as connection:
        query = f"SELECT {', '.join(names)} FROM read_parquet(?, hive_partitioning = true)"
        found = connection.execute(query, [f"{folder}/**/*.parquet"]).fetchall()
    assert sorted(found, key=key) == wanted
    frame = pl.read_parquet(folder / "**" / "*.parquet", hive_partitioning=True)
    assert sorted(frame.select(names).rows(), key=key) == wanted


def test_every_shard_lies_in_the_folder_of_its_one_value(run, listed) -> None:
    splits = {row["uri"]: row["split"] for half in listed for row in half}
    seen: Counter[str | None] = Counter()
    for path in (run.output.folder / "embeddings").rglob("*.parquet"):
        values = {splits[row["uri"]] for row in pq.ParquetFile(path).read().to_pylist()}
        assert len(values) <= 1
        seen.update(values)
    assert set(seen) == set(SPLITS)


def test_the_output_verifies(run, commands) -> None:
    audit = commands.run("verify", "--output", run.output.folder)
    assert audit.code == 0, str(audit)
