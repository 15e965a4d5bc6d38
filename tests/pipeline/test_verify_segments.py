"""The audit of `frames/` and `tokens/`: what is whole passes, and what is not is told."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.known import PlanReport
from pipeline.location import digest
from pipeline.manifest import Generation
from pipeline.marker import Marker
from pipeline.verify import verify

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
Change = Callable[[pa.Table], pa.Table]

SHARD = "g000000-00000000"
FOLDERS = {"frame": "frames", "token": "tokens"}


@pytest.fixture
def make(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Freeze,
    commit: Callable[..., list[Marker]],
) -> Callable[[str], Path]:
    """An output of a level, in shards of four: a still, a failed item, a clip and a still."""

    def output(level: str) -> Path:
        place = tmp_path / level
        location = write_manifest({"uri": [f"/media/{n}.jpg" for n in range(5)]})
        _, generation = freeze(str(place), location, shard_rows=4)
        assert generation is not None
        commit(str(place), generation, failed={1: "corrupt"}, clips={1, 2}, level=level)
        return place

    return output


def forge(output: Path, change: Change, folder: str = "tokens") -> None:
    """Changes an object of the first shard, and all that its marker says of it."""
    path = output / folder / f"{SHARD}.parquet"
    table = change(pq.read_table(io.BytesIO(path.read_bytes())))
    pq.write_table(table, path)
    data = path.read_bytes()
    place = output / f"_patchflow/commits/{SHARD}.json"
    marker = Marker.from_json(place.read_bytes())
    objects = [
        replace(o, rows=table.num_rows, size_bytes=len(data), checksum=digest(data))
        if o.name.startswith(folder)
        else o
        for o in marker.objects
    ]
    place.write_bytes(replace(marker, objects=objects).to_json())


def column(name: str, values: list[Any]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        field = table.schema.field(name)
        return table.set_column(index, field, pa.array(values, field.type))

    return change


def part(name: str, row: int, value: Any) -> Change:
    """Changes one value."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        return column(name, values)(table)

    return change


@pytest.mark.parametrize("level", FOLDERS)
def test_a_healthy_output_passes(make: Callable[[str], Path], level: str) -> None:
    audit = verify(str(make(level)))
    assert (audit.breaches, audit.unfinished, audit.leftovers) == ([], [], [])
    assert (audit.shards_committed, audit.embedded, audit.failed) == (2, 4, 1)


@pytest.mark.parametrize("level", FOLDERS)
def test_what_an_open_shard_will_overwrite_is_no_breach(
    make: Callable[[str], Path], level: str
) -> None:
    output = make(level)
    (output / f"_patchflow/commits/{SHARD}.json").unlink()
    audit = verify(str(output))
    assert audit.breaches == []
    assert f"{FOLDERS[level]}/{SHARD}.parquet" in audit.unfinished


@pytest.mark.parametrize("level", FOLDERS)
def test_a_missing_object_is_found(make: Callable[[str], Path], level: str) -> None:
    output, name = make(level), f"{FOLDERS[level]}/{SHARD}.parquet"
    (output / name).unlink()
    assert verify(str(output)).breaches == [f"{SHARD}: {name} is missing"]


@pytest.mark.parametrize("level", FOLDERS)
def test_a_flipped_bit_is_found(make: Callable[[str], Path], level: str) -> None:
    output, name = make(level), f"{FOLDERS[level]}/{SHARD}.parquet"
    data = bytearray((output / name).read_bytes())
    data[len(data) // 2] ^= 1
    (output / name).write_bytes(data)
    assert verify(str(output)).breaches == [f"{SHARD}: {name} is not what was committed"]


@pytest.mark.parametrize("level", ["item", "frame", "token"])
@pytest.mark.parametrize("folder", ["frames", "tokens"])
def test_an_object_that_no_marker_names_is_found(
    make: Callable[[str], Path], level: str, folder: str
) -> None:
    output, name = make(level), f"{folder}/g000000-00000007.parquet"
    (output / folder).mkdir(exist_ok=True)
    (output / name).write_bytes(b"stray")
    assert verify(str(output)).breaches == [f"{name}: in no marker"]


@pytest.mark.parametrize("level", FOLDERS)
def test_a_marker_without_its_segments_is_found(make: Callable[[str], Path], level: str) -> None:
    output, name = make(level), f"{FOLDERS[level]}/{SHARD}.parquet"
    place = output / f"_patchflow/commits/{SHARD}.json"
    marker = Marker.from_json(place.read_bytes())
    place.write_bytes(replace(marker, objects=marker.objects[:2]).to_json())
    names = f"embeddings/{SHARD}.parquet and errors/{SHARD}.parquet"
    assert verify(str(output)).breaches == [
        f"{SHARD}: its marker names {names}, where the manifest has {names} and {name}"
    ]


@pytest.mark.parametrize("level", ["item", "frame", "token"])
def test_where_run_json_is_gone_the_objects_of_the_level_are_no_breach(
    make: Callable[[str], Path], level: str
) -> None:
    output = make(level)
    (output / "_patchflow/run.json").unlink()
    assert verify(str(output)).breaches == ["_patchflow/run.json is missing"]


# Rows are the still's, the clip's three and the last still's; D is 4 and a token 2 by 2 patches.
BREACHES: dict[str, tuple[Change, str]] = {
    "a segment lost": (
        lambda table: table.take([0, 1, 3, 4]),
        "1 segments without a row, 0 with several, 0 of no embedding",
    ),
    "a segment twice": (
        lambda table: table.take([0, 1, 2, 3, 3, 4]),
        "0 segments without a row, 1 with several, 0 of no embedding",
    ),
    "a segment too many": (
        part("segment", 4, 1),
        "1 segments without a row, 0 with several, 1 of no embedding",
    ),
    "another item's": (
        part("item_id", 0, "0" * 32),
        "1 segments without a row, 0 with several, 1 of no embedding",
    ),
    "a null number": (
        part("segment", 0, None),
        "1 segments without a row, 0 with several, 1 of no embedding",
    ),
    "another order": (
        lambda table: table.take([0, 2, 1, 3, 4]),
        "segments in another order than the embeddings",
    ),
    "another uri": (part("uri", 2, "/x.jpg"), "segments with another uri than their item"),
    "a still's timestamp": (part("timestamp_s", 0, 0.0), "stills with a timestamp"),
    "no timestamp": (part("timestamp_s", 2, None), "segments of clips without a timestamp"),
    "timestamps that go back": (part("timestamp_s", 3, 0.25), "timestamps that do not ascend"),
    "a timestamp that is no number": (
        part("timestamp_s", 2, float("nan")),
        "timestamps that do not ascend",
    ),
    "not finite": (
        part("embedding", 3, [0.0, float("inf"), 0.0, 0.0]),
        "segment embeddings that are not finite",
    ),
    "no vector": (part("embedding", 3, None), "null segment embeddings"),
    "another height": (part("grid_h", 1, 4), "segments with another grid than their item"),
    "another width": (part("grid_w", 1, 8), "segments with another grid than their item"),
    "a token lost": (
        part("tokens", 1, [[0.0] * 4] * 2),
        "segments with another number of tokens than their grid has",
    ),
    "a token that is not finite": (
        part("tokens", 1, [[0.0] * 4, [0.0] * 4, [0.0, float("nan"), 0.0, 0.0]]),
        "tokens that are not finite",
    ),
    "no token": (part("tokens", 1, [[0.0] * 4, [0.0] * 4, None]), "null tokens"),
    "no number": (part("tokens", 1, [[0.0] * 4, [0.0] * 4, [None] * 4]), "null tokens"),
    "no column": (lambda table: table.drop_columns("uri"), "no column uri"),
    "a column too many": (
        lambda table: table.append_column("extra", table["segment"]),
        "a column extra too many",
    ),
    "another width of vectors": (
        lambda table: table.set_column(
            4, "embedding", pa.array([[0.0] * 5] * 5, pa.list_(pa.float32(), 5))
        ),
        "embedding is fixed_size_list",
    ),
}


@pytest.mark.parametrize("what", BREACHES)
def test_a_forged_object_is_found(make: Callable[[str], Path], what: str) -> None:
    output, (change, says) = make("token"), BREACHES[what]
    forge(output, change)
    (breach,) = verify(str(output)).breaches
    assert breach.startswith(f"{SHARD}: ") and says in breach


def test_equal_timestamps_pass(make: Callable[[str], Path]) -> None:
    output = make("frame")
    forge(output, part("timestamp_s", 2, 0.0), "frames")
    assert verify(str(output)).breaches == []


def test_another_number_of_rows_than_the_marker_says_is_found(make: Callable[[str], Path]) -> None:
    output = make("frame")
    place = output / f"_patchflow/commits/{SHARD}.json"
    marker = Marker.from_json(place.read_bytes())
    objects = [*marker.objects[:2], replace(marker.objects[2], rows=4)]
    place.write_bytes(replace(marker, objects=objects).to_json())
    assert verify(str(output)).breaches == [
        f"{SHARD}: its marker has other numbers of rows than its objects"
    ]


def test_segments_of_an_item_that_failed_are_found(make: Callable[[str], Path]) -> None:
    output = make("frame")

    def change(table: pa.Table) -> pa.Table:
        errors = pq.read_table(output / f"errors/{SHARD}.parquet")
        failed = table.slice(0, 1).set_column(0, "item_id", errors["item_id"])
        return pa.concat_tables([table, failed])

    forge(output, change, "frames")
    assert verify(str(output)).breaches == [
        f"{SHARD}: 0 segments without a row, 0 with several, 1 of no embedding"
    ]
