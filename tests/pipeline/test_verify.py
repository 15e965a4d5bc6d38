"""The audit and the status: a healthy output passes, and every breach is found."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PatchflowError, StorageError, UsageError
from pipeline.known import PlanReport
from pipeline.location import digest
from pipeline.manifest import Generation, generations
from pipeline.marker import Marker, Stored
from pipeline.status import GenerationStatus, markers, status
from pipeline.verify import verify

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]
Commit = Callable[..., list[Marker]]

FIRST = "g000000-00000000"


def embeddings(output: str, shard: str = FIRST) -> Path:
    return Path(output) / "embeddings" / f"{shard}.parquet"


def marker_of(output: str, shard: str = FIRST) -> Path:
    return Path(output) / "_patchflow" / "commits" / f"{shard}.json"


def rewrite(output: str, change: Callable[[pa.Table], pa.Table], kind: str = "embeddings") -> None:
    """Changes an object of the first shard and its marker's sizes, as a bug of ours would."""
    path = Path(output) / kind / f"{FIRST}.parquet"
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(path.read_bytes()))), sink)
    data = sink.getvalue()
    path.write_bytes(data)
    place = marker_of(output)
    marker = Marker.from_json(place.read_bytes())
    objects = [
        Stored(name=o.name, rows=o.rows, size_bytes=len(data), checksum=digest(data))
        if o.name.startswith(kind)
        else o
        for o in marker.objects
    ]
    place.write_bytes(replace(marker, objects=objects).to_json())


def test_a_healthy_output_passes(healthy: str) -> None:
    audit = verify(healthy)
    assert audit.breaches == audit.unfinished == []
    assert (audit.shards, audit.shards_committed) == (3, 3)
    assert (audit.rows, audit.embedded, audit.failed) == (7, 5, 2)


def test_an_unfinished_output_passes(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, commit: Commit
) -> None:
    output = str(tmp_path / "out")
    location = write_manifest({"uri": [f"/{n}.jpg" for n in range(7)]})
    _, generation = freeze(output, location, shard_rows=3)
    assert verify(output).breaches == []
    assert generation is not None
    commit(output, generation, [2, 0])
    # A third was killed before its marker.
    commit(output, generation, [1])
    marker_of(output, "g000000-00000001").unlink()
    audit = verify(output)
    assert audit.breaches == []
    assert (audit.shards, audit.shards_committed, audit.rows) == (3, 2, 4)
    assert sorted(audit.unfinished) == [
        "embeddings/g000000-00000001.parquet",
        "errors/g000000-00000001.parquet",
    ]


def test_a_partitioned_output_of_two_generations_on_s3_passes(
    s3_media: str, write_manifest: WriteManifest, freeze: Freeze, commit: Commit
) -> None:
    output = f"{s3_media}/out"
    for name, uris in (("one", "abcd"), ("two", "abcdef")):
        columns = {"uri": [f"/{u}.jpg" for u in uris], "k": ["x/y", "é"] * (len(uris) // 2)}
        location = write_manifest(columns, name)
        options: dict[str, Any] = {"shard_rows": 2, "partition_by": ("k",)} if name == "one" else {}
        _, generation = freeze(output, location, **options)
        assert generation is not None
        commit(output, generation, failed={0: "empty"})
    audit = verify(output)
    assert audit.breaches == audit.unfinished == []
    assert (audit.shards, audit.rows, audit.failed) == (4, 6, 4)


def test_a_missing_object_is_found(healthy: str) -> None:
    embeddings(healthy).unlink()
    assert verify(healthy).breaches == [f"{FIRST}: embeddings/{FIRST}.parquet is missing"]


def test_a_missing_errors_object_is_found(healthy: str) -> None:
    (Path(healthy) / "errors" / f"{FIRST}.parquet").unlink()
    assert verify(healthy).breaches == [f"{FIRST}: errors/{FIRST}.parquet is missing"]


def test_a_truncated_object_is_found(healthy: str) -> None:
    path = embeddings(healthy)
    path.write_bytes(path.read_bytes()[:-1])
    name = f"embeddings/{FIRST}.parquet"
    assert verify(healthy).breaches == [f"{FIRST}: {name} is not what was committed"]


def test_a_flipped_bit_is_found(healthy: str) -> None:
    path = embeddings(healthy)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    name = f"embeddings/{FIRST}.parquet"
    assert verify(healthy).breaches == [f"{FIRST}: {name} is not what was committed"]


@pytest.mark.parametrize(
    "name",
    [
        f"embeddings/label=cat/{FIRST}.parquet",
        "embeddings/part-0.parquet",
        "errors/g000000-00000001-copy.parquet",
        "embeddings/notes.txt",
    ],
)
def test_an_object_that_no_marker_names_is_found(healthy: str, name: str) -> None:
    path = Path(healthy) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(embeddings(healthy).read_bytes())
    assert verify(healthy).breaches == [f"{name}: in no marker"]


def test_a_row_twice_is_found(healthy: str) -> None:
    rewrite(healthy, lambda rows: rows.take([0, 1, 1]))
    assert verify(healthy).breaches == [
        f"{FIRST}: 3 embeddings and 1 errors, the marker says otherwise",
        f"{FIRST}: 0 items without a terminal row, 1 with several, 0 unplanned",
    ]


def test_an_item_both_embedded_and_failed_is_found(healthy: str) -> None:
    good = pq.read_table(embeddings(healthy))
    ids = good["item_id"].slice(0, 1)
    rewrite(healthy, lambda rows: rows.set_column(0, "item_id", ids), kind="errors")
    assert verify(healthy).breaches == [
        f"{FIRST}: 1 items without a terminal row, 1 with several, 0 unplanned"
    ]


def test_a_lost_row_is_found(healthy: str) -> None:
    rewrite(healthy, lambda rows: rows.slice(1))
    assert verify(healthy).breaches == [
        f"{FIRST}: 1 embeddings and 1 errors, the marker says otherwise",
        f"{FIRST}: 1 items without a terminal row, 0 with several, 0 unplanned",
    ]


def test_a_foreign_row_is_found(healthy: str) -> None:
    rewrite(healthy, lambda rows: rows.set_column(0, "item_id", pa.array(["0" * 32, "1" * 32])))
    assert verify(healthy).breaches == [
        f"{FIRST}: 2 items without a terminal row, 0 with several, 2 unplanned"
    ]


def test_rows_of_another_generation_are_found(healthy: str) -> None:
    def change(rows: pa.Table) -> pa.Table:
        index = rows.schema.get_field_index("generation")
        return rows.set_column(index, "generation", pa.array([4, 4], pa.int32()))

    rewrite(healthy, change)
    assert verify(healthy).breaches == [f"{FIRST}: embeddings of another generation"]


def with_vectors(values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        index = rows.schema.get_field_index("embedding")
        return rows.set_column(index, "embedding", values)

    return change


def test_vectors_of_another_width_are_found(healthy: str) -> None:
    vectors = pa.array([[0.0] * 5] * 2, pa.list_(pa.float32(), 5))
    rewrite(healthy, with_vectors(vectors))
    (breach,) = verify(healthy).breaches
    assert breach.startswith("embeddings of different types")
    assert "[4]" in breach and "[5]" in breach


def test_vectors_of_another_precision_are_found(healthy: str) -> None:
    column = pq.read_table(embeddings(healthy))["embedding"].combine_chunks()
    half = pa.FixedSizeListArray.from_arrays(pc.cast(column.flatten(), pa.float16()), 4)
    rewrite(healthy, with_vectors(half))
    (breach,) = verify(healthy).breaches
    assert "halffloat" in breach and "float" in breach


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_found(healthy: str, value: float) -> None:
    vectors = pa.array([[0.0] * 4, [0.0, 0.0, 0.0, value]], pa.list_(pa.float32(), 4))
    rewrite(healthy, with_vectors(vectors))
    assert verify(healthy).breaches == [f"{FIRST}: embeddings that are not finite"]


def test_null_vectors_are_found(healthy: str) -> None:
    vectors = pa.array([[0.0] * 4, None], pa.list_(pa.float32(), 4))
    rewrite(healthy, with_vectors(vectors))
    assert verify(healthy).breaches == [f"{FIRST}: null embeddings"]


def test_a_marker_of_an_unknown_shard_is_found(healthy: str) -> None:
    marker = Marker.from_json(marker_of(healthy).read_bytes())
    stray = replace(marker, shard="g000000-00000009")
    marker_of(healthy, stray.shard).write_bytes(stray.to_json())
    assert verify(healthy).breaches == ["g000000-00000009: committed, but in no manifest"]


def test_a_marker_under_another_shards_name_is_found(healthy: str) -> None:
    second = "g000000-00000001"
    embeddings(healthy, second).unlink()
    (Path(healthy) / "errors" / f"{second}.parquet").unlink()
    marker_of(healthy, second).write_bytes(marker_of(healthy).read_bytes())
    assert any(breach.startswith(second) for breach in verify(healthy).breaches)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"[]"])
def test_a_damaged_marker_is_found(healthy: str, content: bytes) -> None:
    marker_of(healthy).write_bytes(content)
    (breach, *_) = verify(healthy).breaches
    assert breach.startswith(FIRST)


def test_a_damaged_marker_stops_the_status_with_a_line_that_names_it(healthy: str) -> None:
    marker_of(healthy).write_bytes(b"not json")
    with pytest.raises(PatchflowError, match=FIRST):
        status(healthy)


def test_manifest_rows_that_are_not_the_planned_ones_are_found(healthy: str) -> None:
    (generation,) = generations(healthy)
    path = Path(healthy) / generation.parts[0]
    table = pq.read_table(io.BytesIO(path.read_bytes()))
    ids = [table["item_id"][0].as_py()] * 2 + table["item_id"].to_pylist()[2:]
    pq.write_table(table.set_column(0, "item_id", pa.array(ids)), path, row_group_size=3)
    breaches = verify(healthy).breaches
    assert "generation 0: 7 manifest rows of 6 items, 7 planned" in breaches


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_manifest_part_that_cannot_be_read_is_told_in_a_line(healthy: str, damage: str) -> None:
    (generation,) = generations(healthy)
    path = Path(healthy) / generation.parts[0]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    try:
        told = verify(healthy).breaches
    except StorageError as error:
        told = [str(error)]
    assert any(generation.parts[0] in line for line in told)


@pytest.mark.parametrize("content", [b"", b"not json", b"{}"])
def test_a_damaged_generation_is_told_in_a_line(healthy: str, content: bytes) -> None:
    path = Path(healthy) / "_patchflow/manifest/g000000.json"
    path.write_bytes(content)
    with pytest.raises(PatchflowError, match=r"g000000\.json") as caught:
        generations(healthy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("look", [verify, status])
def test_what_is_no_output_is_refused_by_name(
    tmp_path: Path, look: Callable[[str], object]
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=f"{place} is no patchflow output"):
            look(str(place))
    assert [path.name for path in tmp_path.iterdir()] == ["x.jpg"]


def test_the_status_counts_what_is_committed(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, commit: Commit
) -> None:
    output = str(tmp_path / "out")
    one = write_manifest({"uri": [f"/{n}.jpg" for n in range(7)]}, "one")
    two = write_manifest({"uri": [f"/{n}.jpg" for n in range(9)]}, "two")
    _, first = freeze(output, one, shard_rows=3)
    _, second = freeze(output, two)
    assert first is not None and second is not None
    commit(output, first, [0], failed={0: "empty", 1: "corrupt"})
    commit(output, first, [2], failed={0: "empty"})
    ((shard, marker),) = markers(output, {FIRST})
    assert (shard, marker and marker.embedded) == (FIRST, 1)
    found = status(output)
    assert found == [
        GenerationStatus(
            generation=0,
            shards=3,
            items=7,
            shards_committed=2,
            embedded=1,
            failed=3,
            errors={"corrupt": 1, "empty": 2},
            tokens=3,
        ),
        GenerationStatus(generation=1, shards=1, items=2),
    ]
    assert [state.open_items for state in found] == [3, 2]


def test_a_marker_is_one_json_object_for_other_programs(healthy: str) -> None:
    found = json.loads(marker_of(healthy).read_bytes())
    assert {"shard", "rows", "embedded", "failed", "errors", "objects", "versions"} <= set(found)
    assert set(found["objects"][0]) == {"name", "rows", "size_bytes", "checksum"}
