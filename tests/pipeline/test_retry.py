"""Retrying: which items, in which version, with which configuration."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.retry
from pipeline.config import EmbedConfig, RetryConfig, RunConfig
from pipeline.errors import RaceError, StorageError, UsageError
from pipeline.identity import fingerprint, identity
from pipeline.known import PlanReport
from pipeline.manifest import Generation, generations, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.record import Recorded, record, recorded
from pipeline.retry import RetryReport, plan_retry, retry

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]
Commit = Callable[..., list[Marker]]
Files = Callable[[Path], dict[str, bytes]]


def rows_of(output: str, generation: Generation) -> list[dict[str, Any]]:
    shards = shards_of(generation, without=set())
    return [row for shard in shards for row in read_shard(output, shard).to_pylist()]


@pytest.fixture
def output(tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, commit: Commit) -> str:
    """Items 1 and 3 failed as corrupt, 4 as empty; labels are cats and a dog, 3."""
    place = str(tmp_path / "out")
    columns = {
        "uri": [f"/media/{n}.jpg" for n in range(5)],
        "version": ["1", "1", "1", None, "1"],
        "size_bytes": [7] * 5,
        "label": ["cat", "cat", "cat", "dog", "cat"],
        "score": [0.0, 1.0, None, 3.0, 4.0],
    }
    options: dict[str, Any] = {"shard_rows": 3, "partition_by": ("label",)}
    _, generation = freeze(place, write_manifest(columns), **options)
    assert generation is not None
    commit(place, generation, [0], failed={1: "corrupt"})
    commit(place, generation, [1], failed={0: "empty"})
    commit(place, generation, [2], failed={0: "corrupt"})
    return place


def test_failed_items_keep_their_columns_and_partitions(output: str) -> None:
    report, (first, second) = plan_retry(output)
    assert report == RetryReport(errors=Counter(corrupt=2, empty=1), shards=2)
    found = {row["uri"]: row for row in rows_of(output, second)}
    assert found == {
        row["uri"]: row | {"shard": found[row["uri"]]["shard"]}
        for row in rows_of(output, first)
        if row["uri"] in ("/media/1.jpg", "/media/3.jpg", "/media/4.jpg")
    }
    assert [found[f"/media/{n}.jpg"]["shard"] for n in (1, 4, 3)] == [
        "g000001-00000000",
        "g000001-00000000",
        "g000001-00000001",
    ]
    assert (second.shard_rows, second.partition_by) == (first.shard_rows, first.partition_by)
    assert second.columns == first.columns


def test_only_items_with_a_code_that_was_named_are_tried_again(output: str) -> None:
    report, (_, second) = plan_retry(output, ("empty", "truncated"))
    assert report == RetryReport(errors=Counter(empty=1), shards=1)
    assert [row["uri"] for row in rows_of(output, second)] == ["/media/4.jpg"]


def test_where_nothing_has_failed_nothing_is_written(
    output: str, tmp_path: Path, files: Files
) -> None:
    before = files(tmp_path)
    report, found = plan_retry(output, ("not_found",))
    assert (report, len(found)) == (RetryReport(), 1)
    assert files(tmp_path) == before


def test_the_same_items_again_make_a_generation_each_time(output: str, commit: Commit) -> None:
    for number in (1, 2, 3):
        report, found = plan_retry(output, ("empty",))
        assert report.errors == Counter(empty=1)
        assert [row["uri"] for row in rows_of(output, found[number])] == ["/media/4.jpg"]
        commit(output, found[number], failed={0: "empty"})


def test_an_item_is_planned_in_the_version_that_is_there_now(
    root: str, tmp_path: Path, freeze: Freeze, commit: Commit
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("changed", "gone", "same"):
        (photos / f"{name}.jpg").write_bytes(b"old")
    _, first = freeze(root, str(photos))
    assert first is not None
    commit(root, first, failed={0: "version_changed", 1: "not_found", 2: "corrupt"})
    old = {Path(row["uri"]).stem: row for row in rows_of(root, first)}
    (photos / "changed.jpg").write_bytes(b"newer")
    (photos / "gone.jpg").unlink()
    report, found = plan_retry(root)
    assert report.changed == 1
    new = {Path(row["uri"]).stem: row for row in rows_of(root, found[1])}
    stat = (photos / "changed.jpg").stat()
    assert new.pop("changed") == old.pop("changed") | {
        "version": f"5-{stat.st_mtime_ns}",
        "size_bytes": 5,
        "shard": "g000001-00000000",
    }
    assert new == {name: row | {"shard": "g000001-00000000"} for name, row in old.items()}
    # Planning the folder finds nothing that this has not planned.
    assert freeze(root, str(photos))[1] is None


def test_an_item_without_a_version_stays_without(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, commit: Commit
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    output = str(tmp_path / "out")
    _, first = freeze(output, write_manifest({"uri": [str(tmp_path / "x.jpg")]}))
    assert first is not None
    commit(output, first, failed={0: "corrupt"})
    _, (_, second) = plan_retry(output)
    (row,) = rows_of(output, second)
    assert (row["version"], row["size_bytes"]) == (None, None)


@pytest.mark.parametrize("others", [True, False])
def test_a_look_that_fails_is_storages_fault_unless_others_can_be_read(
    others: bool,
    tmp_path: Path,
    write_manifest: WriteManifest,
    freeze: Freeze,
    commit: Commit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No file can have a name of this length, which is true of the name alone.
    output, uri = str(tmp_path / "out"), f"{tmp_path}/{'x' * 300}.jpg"
    _, first = freeze(output, write_manifest({"uri": [uri], "version": ["1"]}))
    assert first is not None
    commit(output, first, failed={0: "corrupt"})
    if others:
        _, (_, second) = plan_retry(output)
        assert rows_of(output, second)[0]["version"] == "1"
        return
    monkeypatch.setattr("pipeline.local.LocalStorage.answers", lambda self, beside: False)
    with pytest.raises(StorageError, match=r"x\.jpg"):
        plan_retry(output)
    assert generations(output) == [first]


def test_of_two_retries_at_once_the_other_finds_nothing_left(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = pipeline.retry.freeze

    def late(*args: Any) -> Any:
        monkeypatch.setattr("pipeline.retry.freeze", freeze)
        plan_retry(output)
        return freeze(*args)

    monkeypatch.setattr("pipeline.retry.freeze", late)
    report, found = plan_retry(output)
    assert (report, len(found)) == (RetryReport(), 2)


def test_a_race_that_is_lost_over_and_over_is_told(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*args: Any) -> None:
        raise RaceError("other runs plan at the same time")

    monkeypatch.setattr("pipeline.retry.freeze", lose)
    with pytest.raises(RaceError):
        plan_retry(output)


def test_a_missing_errors_object_is_told_by_its_name(output: str) -> None:
    (Path(output) / "errors" / "g000000-00000001.parquet").unlink()
    with pytest.raises(StorageError, match=r"errors/g000000-00000001\.parquet is missing"):
        plan_retry(output)


def test_an_errors_object_that_is_not_what_was_committed_is_told_by_its_name(output: str) -> None:
    path = Path(output) / "errors" / "g000000-00000001.parquet"
    shutil.copy(path.with_name("g000000-00000002.parquet"), path)
    with pytest.raises(StorageError, match=r"errors/g000000-00000001\.parquet is damaged"):
        plan_retry(output)


def test_a_manifest_row_that_is_not_the_items_is_not_planned(output: str) -> None:
    (generation,) = generations(output)
    path = Path(output) / generation.parts[0]
    table = pq.read_table(io.BytesIO(path.read_bytes()))
    uris = [uri.replace("media", "nedia") for uri in table["uri"].to_pylist()]
    with pq.ParquetWriter(path, table.schema) as writer:
        damaged = table.set_column(1, "uri", pa.array(uris))
        for start, size in ((0, 3), (3, 1), (4, 1)):
            writer.write_table(damaged.slice(start, size))
    with pytest.raises(StorageError, match=rf"{generation.parts[0]} is damaged"):
        plan_retry(output)
    assert generations(output) == [generation]


def test_what_was_planned_and_never_embedded_has_nothing_to_retry(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    freeze(str(tmp_path / "out"), write_manifest({"uri": ["/a.jpg"]}))
    told: list[RetryReport] = []
    assert retry(RetryConfig(output=str(tmp_path / "out")), on_plan=told.append) is None
    assert told == [RetryReport()]


def test_what_is_no_output_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} is no patchflow output"):
        retry(RetryConfig(output=str(tmp_path)), on_plan=lambda report: None)


def test_an_unknown_code_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="--code broken: no such error code; there are not_found"):
        RetryConfig(output="out", code=("corrupt", "broken"))


# --- the configuration that run.json holds -------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"seed": 3},
    {"encoder": "small"},
    {"min_pixels": 5000},
    {"max_pixels": 100_000},
    {"max_pixels": 1000},
    {"min_pixels": 5000, "max_pixels": 100_000},
    {"pool": "max"},
    {"features": "last_hidden_state"},
    {"normalize": True},
    {"output_dtype": "float16"},
    {"decode": "fast"},
]
CHECKPOINT = [options for options in OPTIONS if not {"seed", "encoder"} & set(options)]


def begun(output: Path, **options: Any) -> Recorded:
    config = EmbedConfig(output=str(output), **options)
    record(config, identity(config, "cpu"))
    found = recorded(str(output))
    assert found is not None
    return found


def assert_restored(output: Path, run: Recorded, device: Any, options: dict[str, Any]) -> None:
    """The configuration and the identity are those that the output was begun with."""
    asked = EmbedConfig(output=str(output), **options)
    expected = identity(asked, device)
    config = run.embed_config(RunConfig(output=str(output)), str(output))
    what = run.identity(config, device)
    assert what == expected
    assert fingerprint(what.semantics) == run.fingerprint == fingerprint(expected.semantics)
    names = ("output", "encoder", "seed", "level", "pool", "features", "normalize", "output_dtype")
    names += ("decode",)
    assert [getattr(config, name) for name in names] == [getattr(asked, name) for name in names]
    # Given on the command line once more, it is the same configuration.
    assert identity(config, device).semantics == run.semantics


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_presets_configuration_is_restored(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_restored(tmp_path, begun(tmp_path, **options), "cpu", options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_restored_on_any_device(tmp_path: Path, dtype: str) -> None:
    run = begun(tmp_path, dtype=dtype)
    for device in ("cpu", "cuda"):
        assert_restored(tmp_path, run, device, {"dtype": dtype})


@pytest.mark.parametrize("options", CHECKPOINT, ids=str)
def test_a_checkpoints_configuration_is_restored(
    tmp_path: Path, goldens: Path, options: dict[str, Any]
) -> None:
    options = options | {"encoder": str(goldens / "checkpoint-glm4v")}
    assert_restored(tmp_path, begun(tmp_path, **options), "cpu", options)


def test_a_checkpoint_that_is_gone_is_not_needed(tmp_path: Path, goldens: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(goldens / "checkpoint-glm4v", folder)
    (folder / "preprocessor_config.json").write_text('{"patch_expand_factor": 2}')
    run = begun(tmp_path / "out", encoder=str(folder))
    expected = identity(EmbedConfig(output="out", encoder=str(folder)), "cpu")
    shutil.rmtree(folder)
    config = run.embed_config(RunConfig(output="out"), "out")
    assert run.identity(config, "cpu") == expected


def test_free_options_are_the_commands_own(tmp_path: Path) -> None:
    run = begun(tmp_path, pool="max")
    free = RunConfig(
        output="elsewhere",
        max_error_rate=0.5,
        device="cpu",
        encoder_actors=2,
        preprocess_actors=3,
        token_budget=4,
        max_file_bytes=5,
        max_source_pixels=6,
        max_duration_s=6.5,
        decode_timeout_s=7.5,
        decoder_memory_bytes=8,
        verbose=True,
    )
    config = run.embed_config(free, str(tmp_path))
    assert config == EmbedConfig(
        **{**vars(free), "output": str(tmp_path)},
        pool="max",
        dtype="float32",
        min_pixels=run.semantics["min_pixels"],
        max_pixels=run.semantics["max_pixels"],
        video_max_pixels=87_478_720,
        fps=2.0,
        max_frames=640,
    )
