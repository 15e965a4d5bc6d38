"""The audit: a healthy output passes, and what our own bugs could do is found."""

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
from pipeline.manifest import Generation, generations, read_shard, shards_of
from pipeline.marker import Marker, Stored
from pipeline.status import status
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


def test_what_a_device_check_keeps_is_no_breach(healthy: str) -> None:
    devices = Path(healthy) / "_patchflow" / "devices"
    devices.mkdir()
    (devices / "0123.json").write_text("{}")
    audit = verify(healthy)
    assert audit.breaches == audit.unfinished == audit.leftovers == []
    assert status(healthy).items.embedded == 5


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
        f"{FIRST}: its marker has another number of tokens than its embeddings",
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
        f"{FIRST}: its marker has another number of tokens than its embeddings",
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
    assert breach.startswith(f"{FIRST}: embeddings/{FIRST}.parquet: embedding is fixed_size_list")
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


def test_manifest_rows_that_are_not_the_planned_ones_are_found(healthy: str) -> None:
    (generation,) = generations(healthy)
    table = pq.read_table(io.BytesIO((Path(healthy) / generation.parts[0]).read_bytes()))
    ids = [table["item_id"][0].as_py()] * 2 + table["item_id"].to_pylist()[2:]
    forge_part(healthy, generation, table.set_column(0, "item_id", pa.array(ids)))
    breaches = verify(healthy).breaches
    assert f"{FIRST}: its manifest rows are not the planned ones" in breaches
    assert "generation 0: 7 manifest rows of 6 items, 7 planned" in breaches


def test_an_item_in_two_shards_of_a_generation_is_found(healthy: str) -> None:
    (generation,) = generations(healthy)
    table = pq.read_table(io.BytesIO((Path(healthy) / generation.parts[0]).read_bytes()))
    moved = table.slice(0, 6).drop_columns("shard")
    again = table.slice(0, 1).drop_columns("shard")
    rows = pa.concat_tables([moved, again]).append_column("shard", table["shard"])
    forge_part(healthy, generation, rows.select(table.column_names))
    breaches = verify(healthy).breaches
    assert "generation 0: 7 manifest rows of 6 items, 7 planned" in breaches


def forge_part(output: str, generation: Generation, table: pa.Table) -> None:
    """Gives a generation of one part other rows, with all that vouches for them."""
    path = Path(output) / "forged.parquet"
    pq.write_table(table, path, row_group_size=3)
    name = f"_patchflow/manifest/g000000/forged-{digest(path.read_bytes())}.parquet"
    path.rename(Path(output) / name)
    (Path(output) / generation.parts[0]).unlink()
    place = Path(output) / "_patchflow/manifest/g000000.json"
    place.write_bytes(replace(generation, parts=(name,)).to_json())


def typed(table: pa.Table) -> pa.Table:
    """A table with a column whose type has a class of its own for its values, deep within."""
    values = pa.array([bytes(16)] * table.num_rows, pa.uuid())
    return table.append_column("x", pa.StructArray.from_arrays([values], ["y"]))


@pytest.mark.parametrize("kind", ["embeddings", "errors"])
def test_types_that_name_a_class_are_found(healthy: str, kind: str) -> None:
    rewrite(healthy, typed, kind)
    breaches = verify(healthy).breaches
    assert (
        f"{kind}/{FIRST}.parquet is damaged: a column is 'struct<y: extension<arrow.uuid>>'"
        in (breaches[0])
    )


def test_a_manifest_with_such_types_is_not_read(healthy: str) -> None:
    (generation,) = generations(healthy)
    part = Path(healthy) / generation.parts[0]
    pq.write_table(typed(pq.read_table(io.BytesIO(part.read_bytes()))), part)
    with pytest.raises(StorageError, match="is damaged: a column is"):
        read_shard(healthy, next(shards_of(generation, without=set())))


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


def test_a_marker_is_one_json_object_for_other_programs(healthy: str) -> None:
    found = json.loads(marker_of(healthy).read_bytes())
    assert {"shard", "rows", "embedded", "failed", "errors", "objects", "versions"} <= set(found)
    assert set(found["objects"][0]) == {"name", "rows", "size_bytes", "checksum"}
