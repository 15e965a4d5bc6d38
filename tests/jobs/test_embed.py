"""`embed` on a folder of real photos: the first run, one with nothing to do, one that adds."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
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

Row = dict[str, Any]

# The one thing that a run says on standard error while all is well.
PROGRESS = re.compile(r"[\d,]+ of [\d,]+ items  .*\S")
WIDTH = 256


def summary(out: str) -> dict[str, str]:
    lines = (line.strip().split("  ", 1) for line in out.splitlines() if "  " in line.strip())
    return {name: value.strip() for name, value in lines}


# --- the first run ------------------------------------------------------------------------------


def test_every_item_gets_exactly_one_terminal_row(clean_run, collection) -> None:
    grown = {str(path) for path in collection.growing.iterdir()}
    uris = [row["uri"] for row in (*clean_run.rows, *clean_run.errors)]
    assert sorted(uris) == sorted(collection.uris | grown)


def test_rows_equal_each_photo_processed_and_encoded_alone(
    clean_run, collection, alone, assert_rows
) -> None:
    photos = [*collection.good, *sorted(collection.growing.iterdir())]
    assert_rows(clean_run.rows, [alone(path) for path in photos])


def test_each_bad_file_fails_with_its_own_code_among_good_neighbours(clean_run, collection) -> None:
    found = {Path(row["uri"]).name: row for row in clean_run.errors}
    assert {name: row["error_code"] for name, row in found.items()} == collection.bad
    for name, row in found.items():
        stat = (collection.folder / name).stat()
        assert row["version"] == f"{stat.st_size}-{stat.st_mtime_ns}"
        kind = "video" if name.endswith(".mp4") else "image"
        assert (row["media_type"], row["stage"], row["attempts"]) == (kind, "preprocess", 1)
        assert re.fullmatch(r"[^\n]{3,300}", row["error_message"]), row


def test_shards_are_whole_and_in_the_order_of_the_folder(clean_run) -> None:
    markers = [
        json.loads(path.read_text())
        for path in sorted((clean_run.output.folder / "_patchflow" / "commits").iterdir())
    ]
    assert [marker["shard"] for marker in markers] == [f"g000000-{n:08d}" for n in range(9)]
    assert [marker["rows"] for marker in markers] == [16] * 8 + [13]
    embeddings, errors = (
        [
            {row["uri"] for row in pq.read_table(path, columns=["uri"]).to_pylist()}
            for path in sorted((clean_run.output.folder / table).iterdir())
        ]
        for table in ("embeddings", "errors")
    )
    shards = [sorted(good | bad) for good, bad in zip(embeddings, errors, strict=True)]
    assert [len(shard) for shard in shards] == [16] * 8 + [13]
    planned = pq.read_table(
        next((clean_run.output.folder / "_patchflow" / "manifest" / "g000000").iterdir())
    ).to_pylist()
    assert shards == [
        sorted(row["uri"] for row in planned[start : start + 16]) for start in range(0, 141, 16)
    ]


def test_the_schema_is_the_one_that_is_promised(clean_run) -> None:
    found = pq.read_schema(next((clean_run.output.folder / "embeddings").iterdir()))
    assert found.remove_metadata() == pa.schema(
        [
            ("item_id", pa.string()),
            ("uri", pa.string()),
            ("version", pa.string()),
            ("media_type", pa.string()),
            ("content_hash", pa.string()),
            ("generation", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("num_frames", pa.int32()),
            ("duration_s", pa.float64()),
            ("grid_thw", pa.list_(pa.int32(), 3)),
            ("num_tokens", pa.int32()),
            ("embedding", pa.list_(pa.float32(), WIDTH)),
        ]
    )


def read_duckdb(folder: Path) -> list[tuple[str, Any]]:
    with duckdb.connect() as connection:
        query = f"SELECT uri, embedding FROM '{folder}/**/*.parquet'"
        return connection.execute(query).fetchall()


def read_polars(folder: Path) -> list[tuple[str, Any]]:
    frame = pl.read_parquet(folder / "**" / "*.parquet")
    return list(zip(frame["uri"].to_list(), frame["embedding"].to_list(), strict=True))


def read_pandas(folder: Path) -> list[tuple[str, Any]]:
    frame = pd.read_parquet(folder)
    return [(row.uri, list(row.embedding)) for row in frame.itertuples()]


def read_pyarrow(folder: Path) -> list[tuple[str, Any]]:
    table = ds.dataset(folder, format="parquet").to_table(columns=["uri", "embedding"])
    return list(zip(table["uri"].to_pylist(), table["embedding"].to_pylist(), strict=True))


@pytest.mark.parametrize("read", [read_duckdb, read_polars, read_pandas, read_pyarrow])
def test_embeddings_are_read_as_they_stand(
    read: Callable[[Path], list[tuple[str, Any]]], clean_run
) -> None:
    found = read(clean_run.output.folder / "embeddings")
    assert sorted((uri, list(vector)) for uri, vector in found) == [
        (row["uri"], row["embedding"]) for row in clean_run.rows
    ]
    assert {len(vector) for _, vector in found} == {WIDTH}
    assert not any(value is None for _, vector in found for value in vector)


def test_the_summary_says_what_was_done_and_that_weights_are_random(clean_run, collection) -> None:
    out = clean_run.done.out
    assert out.splitlines()[0].startswith("141 new items: ")
    assert "skipped files that are neither images nor videos by name: 1 .txt" in out
    said = summary(out)
    tokens = sum(row["num_tokens"] for row in clean_run.rows)
    assert said["embedded"] == f"132 items, {tokens:,} tokens"
    codes = Counter(collection.bad.values())
    for code, count in codes.items():
        assert f"{code} {count}" in said["failed"]
    assert said["failed"].startswith("9 items: ")
    assert said["shards"] == "9 committed"
    assert said["output"] == str(clean_run.output.folder)
    assert "RANDOM weights" in said["WARNING"] and "'tiny'" in said["WARNING"]


def test_the_summary_of_few_items_says_that_they_tell_of_no_stage(clean_run) -> None:
    assert summary(clean_run.done.out)["limited by"] == (
        "starting up, for most of the time: 141 items are too few to tell more"
    )


def test_the_summary_s_own_line_reads_the_output(clean_run) -> None:
    line = re.search(r"pandas\.read_parquet\('(.*)'\)", clean_run.done.out)
    assert line is not None
    assert len(pd.read_parquet(line[1])) == len(clean_run.rows)


def test_standard_error_holds_progress_and_nothing_else(clean_run) -> None:
    # Of a run of a few seconds there may be none.
    lines = clean_run.done.err.splitlines()
    assert [line for line in lines if not PROGRESS.fullmatch(line)] == []


def test_a_run_leaves_no_process_behind(clean_run) -> None:
    # The driver, Ray's own two servers and the workers were there.
    assert clean_run.done.most_processes > 5
    assert clean_run.done.left_behind == []


def test_verify_and_status_agree_with_what_is_stored(clean_run, commands) -> None:
    audit = commands.run("verify", "--output", clean_run.output.folder)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    good, bad = len(clean_run.rows), len(clean_run.errors)
    assert audit.out.splitlines() == [
        f"9 of 9 shards committed: {good + bad} rows, {good} embedded, {bad} failed",
        "every invariant holds",
    ]
    state = commands.run("status", "--output", clean_run.output.folder, "--json")
    assert (state.code, state.err) == (0, ""), str(state)
    assert json.loads(state.out)["generations"] == [
        {
            "generation": 0,
            "shards": 9,
            "items": good + bad,
            "shards_committed": 9,
            "embedded": good,
            "failed": bad,
            "errors": dict(Counter(row["error_code"] for row in clean_run.errors)),
            "tokens": sum(row["num_tokens"] for row in clean_run.rows),
            "open_items": 0,
        }
    ]


# --- runs on an output that is there already ----------------------------------------------------


@pytest.fixture(scope="module")
def copied(clean_run, output_at, tmp_path_factory) -> Any:
    """A copy of the clean run's output, for runs that add to it."""
    folder = tmp_path_factory.mktemp("copied") / "output"
    shutil.copytree(clean_run.output.folder, folder)
    return output_at(folder)


@pytest.fixture(scope="module")
def again(clean_run, copied, commands) -> Any:
    """The very same command once more, and the output before and after it."""
    before = copied.objects()
    done = commands.run("embed", *clean_run.args, "--output", copied.folder)
    return done, before, copied.objects()


def test_a_second_run_embeds_nothing_and_says_so_at_once(again) -> None:
    done, before, after = again
    assert done.code == 0, str(done)
    assert "nothing to do" in done.out
    assert done.err == ""
    assert done.seconds < 15
    assert after == before


@pytest.fixture(scope="module")
def refused(again, clean_run, copied, commands) -> Any:
    """The same command with other semantic options."""
    before = copied.objects()
    args = (*clean_run.args[:-1], 40000, "--pool", "max", "--output", copied.folder)
    return commands.run("embed", *args), before, copied.objects()


def test_another_semantic_option_is_refused_in_one_line_that_names_it(refused) -> None:
    done, before, after = refused
    assert done.code == 2, str(done)
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "max_pixels was 50176, now 40000" in line
    assert "pool was mean, now max" in line
    assert after == before


@pytest.fixture(scope="module")
def grown(refused, clean_run, collection, copied, run_embed) -> Any:
    """Of three photos one changed, one became bad, one stayed; two are new."""
    before = copied.objects()
    (collection.growing / "0.jpg").write_bytes(collection.cut(".jpg"))
    (collection.growing / "1.jpg").write_bytes(b"")
    (collection.growing / "3.png").write_bytes(collection.cut(".png"))
    (collection.growing / "deeper").mkdir()
    (collection.growing / "deeper" / "4.webp").write_bytes(collection.cut(".webp"))
    return run_embed(copied.folder, *clean_run.args), before


def test_new_and_changed_objects_become_one_generation(
    grown, clean_run, collection, alone, assert_rows
) -> None:
    run, _ = grown
    assert run.done.code == 0, str(run.done)
    assert re.match(r"2 new .*2 changed.*139 known", run.done.out)
    growing = collection.growing
    fresh = [growing / "0.jpg", growing / "3.png", growing / "deeper" / "4.webp"]
    assert_rows(
        [row for row in run.rows if row["generation"] == 1],
        [alone(path) | {"generation": 1} for path in fresh],
    )
    assert [row for row in run.rows if row["generation"] == 0] == clean_run.rows
    (error,) = [row for row in run.errors if row not in clean_run.errors]
    assert (error["uri"], error["error_code"]) == (str(growing / "1.jpg"), "empty")


def test_what_was_committed_is_not_written_again(grown) -> None:
    run, before = grown
    assert {name: run.objects[name] for name in before} == before
    assert {Path(name).stem for name in set(run.objects) - set(before)} == {
        "g000001",
        "g000001-00000000",
        next(
            Path(name).stem
            for name in run.objects
            if name.startswith("_patchflow/manifest/g000001/")
        ),
    }


def test_an_output_of_two_generations_verifies(grown, commands) -> None:
    run, _ = grown
    audit = commands.run("verify", "--output", run.output.folder)
    assert audit.code == 0, str(audit)
    assert audit.out.startswith("10 of 10 shards committed: 145 rows, ")


# --- what cannot work ---------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_one_line(commands, collection, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = commands.run("embed", collection.growing, "--output", tmp_path / "file" / "output")
    assert done.code in (1, 2), str(done)
    (line,) = done.err.splitlines()
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "in the way"
