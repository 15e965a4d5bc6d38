"""Planning: every item once, whatever the collection, the shards and the generations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import InputConfig
from pipeline.errors import RaceError, StorageError, UsageError
from pipeline.known import Known, PlanReport
from pipeline.location import item_id
from pipeline.manifest import Generation, committed, generations, read_shard, shards_of
from pipeline.plan import plan

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]
Files = Callable[[Path], dict[str, bytes]]

# Name, version, and the values of two columns of the caller's.
Item = tuple[str, str | None, str | None, int | None]
items = st.tuples(
    st.sampled_from([f"/m/{name}.jpg" for name in "abcdefgh"]),
    st.sampled_from(["1", "2", None]),
    st.sampled_from(["cat", "a/../b", "é=", "", None]),
    st.sampled_from([0, 7, None]),
)


def write_items(path: Path, rows: list[Item]) -> str:
    names, versions, labels, years = zip(*rows, strict=True) if rows else ((),) * 4
    columns = {
        "uri": pa.array(names, pa.string()),
        "version": pa.array(versions, pa.string()),
        "label": pa.array(labels, pa.string()),
        "year": pa.array(years, pa.int32()),
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def rows_of(output: str, generation: Generation) -> list[list[dict[str, Any]]]:
    """The manifest rows of every shard of a generation."""
    shards = shards_of(generation, without=set())
    return [read_shard(output, shard).to_pylist() for shard in shards]


def expect(known: dict[str, str | None], rows: list[Item]) -> tuple[list[Item], PlanReport]:
    """What planning has to come to, said plainly; updates `known`."""
    report, planned, taken = PlanReport(), [], set()
    for item in rows:
        name, version = item[:2]
        if name in taken:
            report.duplicates += 1
            continue
        if name in known and known[name] == version:
            report.unchanged += 1
            continue
        if name in known:
            report.changed += 1
        else:
            report.new += 1
        known[name] = version
        taken.add(name)
        planned.append(item)
    return planned, report


def check_generation(
    output: str, generation: Generation, planned: list[Item], partition_by: tuple[str, ...]
) -> None:
    shards = rows_of(output, generation)
    assert len(shards) == generation.shards
    assert [len(rows) for rows in shards] == [
        generation.rows_of(index) for index in range(generation.shards)
    ]
    assert generation.rows == len(planned) == sum(map(len, shards))
    expected: dict[tuple[object, ...], list[Item]] = {}
    for item in planned:
        values = dict(zip(("label", "year"), item[2:], strict=True))
        expected.setdefault(tuple(values[name] for name in partition_by), []).append(item)
    found: dict[tuple[object, ...], list[Item]] = {}
    short: Counter[tuple[object, ...]] = Counter()
    for index, rows in enumerate(shards):
        shard_id = f"g{generation.number:06d}-{index:08d}"
        assert {row["shard"] for row in rows} == {shard_id}
        assert all(row["item_id"] == item_id(row["uri"]) for row in rows)
        (values,) = {tuple(row[name] for name in partition_by) for row in rows}
        assert not short[values], "a short shard is its partition's last"
        short[values] += len(rows) < generation.shard_rows
        assert 1 <= len(rows) <= generation.shard_rows
        found.setdefault(values, []).extend(
            (row["uri"], row["version"], row["label"], row["year"]) for row in rows
        )
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(st.lists(items, max_size=12), min_size=1, max_size=3),
    shard_rows=st.integers(1, 5),
    partition_by=st.sampled_from([(), ("label",), ("year", "label")]),
    batch_rows=st.integers(1, 4),
    shards_a_part=st.integers(1, 3),
)
def test_every_item_is_planned_once_in_its_generation(
    rounds: list[list[Item]],
    shard_rows: int,
    partition_by: tuple[str, ...],
    batch_rows: int,
    shards_a_part: int,
) -> None:
    known: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.input_manifest.BATCH_ROWS", batch_rows)
        patch.setattr("pipeline.freeze.SHARDS_A_PART", shards_a_part)
        patch.setattr("pipeline.manifest.SHARDS_A_PART", shards_a_part)
        output, frozen = f"{folder}/out", 0
        for number, rows in enumerate(rounds):
            config = InputConfig(
                inputs=(write_items(Path(folder) / f"{number}.parquet", rows),),
                root=("/m",),
                shard_rows=shard_rows,
                partition_by=partition_by,
            )
            planned, expected = expect(known, rows)
            if not frozen and not planned:
                with pytest.raises(UsageError, match="found nothing at all"):
                    plan(config, output, [])
                continue
            report, generation = plan(config, output, generations(output))
            expected.shards = generation.shards if generation else 0
            assert report == expected
            assert (generation is None) == (not planned)
            if generation is not None:
                assert generation.number == frozen
                assert generations(output)[frozen] == generation
                assert Generation.from_json(generation.to_json()) == generation
                check_generation(output, generation, planned, partition_by)
                frozen += 1
            assert len(generations(output)) == frozen


@given(
    shards=st.integers(0, 20),
    done=st.sets(st.integers(0, 19)),
    start=st.integers(0, 25),
    stop=st.none() | st.integers(0, 25),
)
def test_open_shards_are_those_of_the_slice_without_a_marker(
    shards: int, done: set[int], start: int, stop: int | None
) -> None:
    generation = Generation(
        number=1,
        rows=max(0, 4 * shards - 3),
        size_bytes=0,
        shards=shards,
        shard_rows=4,
        short_shards={shards - 1: 1} if shards else {},
        partition_by=(),
        columns={},
        parts=("part",),
        inputs=(),
        roots=("/m",),
        follow_links=True,
        created_at="",
    )
    names = {f"g000001-{index:08d}" for index in done} | {"g000000-00000000"}
    found = list(shards_of(generation, without=names, start=start, stop=stop))
    indices = [index for index in range(shards)[slice(start, stop)] if index not in done]
    assert [(shard.id, shard.rows, shard.row_group) for shard in found] == [
        (f"g000001-{index:08d}", 1 if index == shards - 1 else 4, index) for index in indices
    ]


def test_a_plan_without_an_output_only_counts(
    tmp_path: Path, write_manifest: WriteManifest, files: Files
) -> None:
    location = write_manifest({"uri": ["/a.jpg", "/b.jpg"], "size_bytes": [10, 20]})
    before = files(tmp_path)
    report, generation = plan(InputConfig(inputs=(location,), root=("/",), shard_rows=1), None, [])
    assert (report.new, report.size_bytes, report.shards, generation) == (2, 30, 2, None)
    assert files(tmp_path) == before


def test_planning_again_what_has_not_changed_writes_nothing(
    tmp_path: Path, freeze: Freeze, files: Files
) -> None:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"data")
    output, photos = str(tmp_path / "out"), str(tmp_path / "photos")
    report, generation = freeze(output, photos)
    assert (report.new, report.unchanged) == (2, 0)
    before = files(tmp_path)
    report, again = freeze(output, photos)
    assert (report.new, report.unchanged, again) == (0, 2, None)
    assert files(tmp_path) == before
    assert generations(output) == [generation]


def test_a_changed_and_a_new_file_make_a_generation_of_those_two(
    tmp_path: Path, freeze: Freeze
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (photos / name).write_bytes(b"data")
    output = str(tmp_path / "out")
    freeze(output, str(photos))
    (photos / "2.jpg").write_bytes(b"other data")
    (photos / "3.jpg").write_bytes(b"new")
    report, generation = freeze(output, str(photos))
    assert (report.new, report.changed, report.unchanged) == (1, 1, 1)
    assert report.size_bytes == 13
    assert generation is not None
    (rows,) = rows_of(output, generation)
    assert [row["uri"] for row in rows] == [f"{photos}/2.jpg", f"{photos}/3.jpg"]


def test_an_item_that_is_named_twice_is_planned_once(tmp_path: Path, freeze: Freeze) -> None:
    (tmp_path / "1.jpg").write_bytes(b"data")
    output, photo = str(tmp_path / "out"), str(tmp_path / "1.jpg")
    report, generation = freeze(output, photo, str(tmp_path), f"file://{photo}")
    assert (report.new, report.duplicates) == (1, 2)
    assert generation is not None and generation.rows == 1


def test_what_is_known_of_a_new_item_is_little_more_than_its_id(tmp_path: Path) -> None:
    """Every look-up beyond the cache reads a page of it, and writes another."""
    path, count = tmp_path / "known.sqlite", 4096
    with closing(Known(path, 0)) as known:
        rows = {"uri": [f"/{n}.jpg" for n in range(count)], "version": ["v" * 32] * count}
        table = pa.table({**rows, "size_bytes": range(count)})
        assert known.fresh(table, PlanReport(), None).num_rows == count
    assert path.stat().st_size < 40 * count


def test_a_limit_takes_the_first_items_and_the_same_command_no_more(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    location = write_manifest({"uri": [f"/{n}.jpg" for n in range(5)]})
    output = str(tmp_path / "out")
    found = []
    for limit in (2, 2, 4, 9):
        _, generation = freeze(output, location, limit=limit)
        if generation is not None:
            found.append([row["uri"] for rows in rows_of(output, generation) for row in rows])
    assert found == [["/0.jpg", "/1.jpg"], ["/2.jpg", "/3.jpg"], ["/4.jpg"]]


def test_of_two_planners_at_once_one_wins_and_none_mixes(
    tmp_path: Path, write_manifest: WriteManifest
) -> None:
    output = str(tmp_path / "out")
    mine = InputConfig(root=("/",), inputs=(write_manifest({"uri": ["/a.jpg", "/b.jpg"]}, "mine"),))
    theirs = InputConfig(root=("/",), inputs=(write_manifest({"uri": ["/c.jpg"]}, "theirs"),))
    _, won = plan(mine, output, [])
    with pytest.raises(RaceError, match="plan at the same time"):
        plan(theirs, output, [])
    assert generations(output) == [won]
    assert won is not None
    assert [[row["uri"] for row in rows] for rows in rows_of(output, won)] == [["/a.jpg", "/b.jpg"]]


def test_a_plan_on_s3_is_that_on_a_disk(
    tmp_path: Path, s3_media: str, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    location = write_manifest({"uri": [f"/{n}.jpg" for n in range(5)], "k": [1, 2, 1, 2, 1]})
    outputs = (str(tmp_path / "out"), f"{s3_media}/out")
    plans = [freeze(o, location, shard_rows=2, partition_by=("k",))[1] for o in outputs]
    assert plans[0] is not None and plans[1] is not None
    assert rows_of(outputs[0], plans[0]) == rows_of(outputs[1], plans[1])
    assert generations(outputs[1]) == [plans[1]]
    with pytest.raises(RaceError, match="at the same time"):
        plan(InputConfig(root=("/",), inputs=(location,)), outputs[1], [])
    assert committed(outputs[1]) == set()


def test_more_folders_than_can_wait_in_memory_are_refused(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.freeze.MOST_FOLDERS", 5)
    rows = {"uri": [f"/{n}.jpg" for n in range(12)]}
    location = write_manifest({**rows, "k": [n % 5 for n in range(12)]}, "few")
    _, generation = freeze(str(tmp_path / "few"), location, partition_by=("k",))
    assert generation is not None and generation.shards == 5
    location = write_manifest({**rows, "k": [n % 6 for n in range(12)]}, "many")
    with pytest.raises(UsageError, match="--partition-by k makes more than 5 folders: choose"):
        freeze(str(tmp_path / "many"), location, partition_by=("k",))
    assert generations(str(tmp_path / "many")) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shard_rows": 3}, "--shard-rows 3: this output was planned with 2"),
        ({"partition_by": ("b",)}, "--partition-by b: this output was planned with a"),
        ({"partition_by": ("a", "b")}, "--partition-by a b: this output was planned with a"),
    ],
)
def test_another_layout_than_the_outputs_is_refused(
    tmp_path: Path,
    write_manifest: WriteManifest,
    freeze: Freeze,
    options: dict[str, Any],
    says: str,
) -> None:
    output = str(tmp_path / "out")
    location = write_manifest({"uri": ["/a.jpg"], "a": [1], "b": [2]})
    freeze(output, location, shard_rows=2, partition_by=("a",))
    with pytest.raises(UsageError, match=says):
        freeze(output, location, **options)


def test_the_layout_of_an_output_is_kept_where_none_is_asked(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    output = str(tmp_path / "out")
    for name in ("one", "two"):
        uris = [f"/{name}{n}.jpg" for n in range(3)]
        location = write_manifest({"uri": uris, "a": [1, 1, 2]}, name)
        options = {"shard_rows": 2, "partition_by": ("a",)} if name == "one" else {}
        _, generation = freeze(output, location, **options)
    assert generation is not None
    assert (generation.number, generation.shard_rows, generation.partition_by) == (1, 2, ("a",))
    assert [len(rows) for rows in rows_of(output, generation)] == [2, 1]


def test_inputs_with_other_columns_than_before_are_refused(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    labelled = write_manifest({"uri": ["/a.jpg"], "label": ["x"]})
    numbered = write_manifest({"uri": ["/b.jpg"], "label": [1]}, "numbered")
    output = str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"label.*string.*before.*int64.*now"):
        freeze(output, labelled, numbered)
    assert generations(output) == []
    freeze(output, labelled)
    with pytest.raises(UsageError, match=r"label.*string.*before.*int64.*now"):
        freeze(output, numbered)
    assert len(generations(output)) == 1


def test_links_that_were_followed_once_are_followed_from_then_on(tmp_path: Path) -> None:
    folder, elsewhere, output = tmp_path / "in", tmp_path / "elsewhere", str(tmp_path / "out")
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    for name, follow_links in (("a", True), ("b", False)):
        (elsewhere / f"{name}.jpg").write_bytes(b"x")
        config = InputConfig(inputs=(str(folder),), follow_links=follow_links)
        report, generation = plan(config, output, generations(output))
        assert (report.new, report.skipped.links) == (1, 0)
        assert generation is not None
        assert generation.follow_links


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**61, pa.timestamp("us")),
        (0, pa.timestamp("us", "Nowhere/At All")),
        (2**31 - 1, pa.date32()),
        (2**62, pa.duration("s")),
    ],
    ids=str,
)
def test_a_time_that_no_calendar_has_names_no_folder(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, value: int, kind: pa.DataType
) -> None:
    column = pa.array([value], pa.int64() if kind.bit_width == 64 else pa.int32()).cast(kind)
    location = write_manifest({"uri": ["/a.jpg"], "when": column})
    output = str(tmp_path / "out")
    with pytest.raises(UsageError, match=r"--partition-by when: a value .* has no name; make it a"):
        freeze(output, location, partition_by=("when",))
    assert generations(output) == []


def test_the_same_columns_in_another_order_are_the_same_columns(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    one = write_manifest({"uri": ["/a.jpg"], "k": [1], "l": ["x"]}, "one")
    two = write_manifest({"l": ["y"], "k": [2], "uri": ["/b.jpg"]}, "two")
    _, generation = freeze(str(tmp_path / "out"), one, two)
    assert generation is not None
    (rows,) = rows_of(str(tmp_path / "out"), generation)
    assert [(row["uri"], row["k"], row["l"]) for row in rows] == [
        ("/a.jpg", 1, "x"),
        ("/b.jpg", 2, "y"),
    ]


def test_a_column_that_may_be_null_in_one_input_and_not_in_another_is_the_same_column(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    fields = [pa.field("uri", pa.string()), pa.field("k", pa.int64(), nullable=False)]
    one = write_manifest(pa.table([["/a.jpg"], [1]], schema=pa.schema(fields)), "one")
    two = write_manifest({"uri": ["/b.jpg"], "k": [None, 2][1:]}, "two")
    _, generation = freeze(str(tmp_path / "out"), one, two, shard_rows=1)
    assert generation is not None
    assert [row["k"] for rows in rows_of(str(tmp_path / "out"), generation) for row in rows] == [
        1,
        2,
    ]


def test_a_categorical_column_is_carried(
    tmp_path: Path,
    write_manifest: WriteManifest,
    freeze: Freeze,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.sources.BATCH_ROWS", 2)
    labels = ["x", "y", "z", "x", None]
    columns = {
        "uri": [f"/{n}.jpg" for n in range(5)],
        "label": pa.array(labels).dictionary_encode(),
    }
    _, generation = freeze(str(tmp_path / "out"), write_manifest(columns), shard_rows=3)
    assert generation is not None
    found = rows_of(str(tmp_path / "out"), generation)
    assert [row["label"] for rows in found for row in rows] == labels


def test_a_partition_column_that_is_not_there_is_refused_by_name(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    location = write_manifest({"uri": ["/a.jpg"], "label": ["x"], "year": [1]})
    with pytest.raises(UsageError, match=r"--partition-by kind: no such column.*label, year"):
        freeze(str(tmp_path / "out"), location, partition_by=("kind",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["x"], ["y"]], pa.list_(pa.string())),
        pa.array([{"a": 1}, {"a": 2}], pa.struct([("a", pa.int64())])),
    ],
    ids=["list", "struct"],
)
def test_a_partition_column_of_nested_values_is_refused_by_name(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, values: pa.Array
) -> None:
    location = write_manifest({"uri": ["/a.jpg", "/b.jpg"], "nested": values})
    with pytest.raises(UsageError, match="nested"):
        freeze(str(tmp_path / "out"), location, partition_by=("nested",))
    assert not (tmp_path / "out").exists()


def test_rows_without_a_number_share_a_partition(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    nan = float("nan")
    columns = {"uri": [f"/{n}.jpg" for n in range(5)], "score": [nan, 0.5, nan, None, nan]}
    _, generation = freeze(str(tmp_path / "out"), write_manifest(columns), partition_by=("score",))
    assert generation is not None
    uris = [[row["uri"] for row in rows] for rows in rows_of(str(tmp_path / "out"), generation)]
    assert sorted(uris) == [["/0.jpg", "/2.jpg", "/4.jpg"], ["/1.jpg"], ["/3.jpg"]]


def test_long_partition_values_are_shards_of_their_own(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    # Of 1,024 bytes, equal but for the last one.
    labels = ["x" * 1023 + end for end in "abab"]
    location = write_manifest({"uri": [f"/{n}.jpg" for n in range(4)], "label": labels})
    _, generation = freeze(str(tmp_path / "out"), location, partition_by=("label",))
    uris = [[row["uri"] for row in rows] for rows in rows_of(str(tmp_path / "out"), generation)]
    assert uris == [["/0.jpg", "/2.jpg"], ["/1.jpg", "/3.jpg"]]


def test_a_generation_in_the_middle_that_is_gone_is_told(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    output = tmp_path / "out"
    for name in ("a", "b"):
        freeze(str(output), write_manifest({"uri": [f"/{name}.jpg"]}, name))
    (output / "_patchflow/manifest/g000000.json").unlink()
    with pytest.raises(StorageError, match=r"generations are missing; found \[1\]"):
        generations(str(output))


def test_parts_without_their_generation_are_nothing(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    output, location = tmp_path / "out", write_manifest({"uri": ["/a.jpg"]})
    freeze(str(output), location)
    # A planner that was killed before its last write.
    (output / "_patchflow/manifest/g000000.json").unlink()
    assert generations(str(output)) == []
    report, generation = freeze(str(output), location)
    assert report.new == 1
    assert generation is not None
    assert generations(str(output)) == [generation]
    assert [row["uri"] for row in rows_of(str(output), generation)[0]] == ["/a.jpg"]


def test_other_files_among_the_markers_are_no_shards(tmp_path: Path) -> None:
    commits = tmp_path / "_patchflow" / "commits"
    commits.mkdir(parents=True)
    for name in ("g000000-00000003.json", "notes.json", ".partial-1", "g000000-00000004.txt"):
        (commits / name).write_bytes(b"{}")
    assert committed(str(tmp_path)) == {"g000000-00000003"}
