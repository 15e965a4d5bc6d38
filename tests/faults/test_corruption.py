"""Every corruption that is injected into a healthy output is found, and named by its object."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import layout
from pipeline.config import EmbedConfig
from pipeline.errors import PatchflowError
from pipeline.identity import identity
from pipeline.location import digest
from pipeline.marker import Marker, Stored
from pipeline.record import record
from pipeline.retry import plan_retry
from pipeline.status import status
from pipeline.storage import storage_for
from pipeline.verify import verify

GOLDENS = Path(__file__).parents[1] / "goldens"
SHARD = "g000000-00000000"
CAT = f"embeddings/label=cat/{SHARD}.parquet"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def output(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Callable[..., Any],
    commit: Callable[..., list[Marker]],
) -> Path:
    """Two generations in folders by label: 0 and 3 have changed, 2 failed.

    All is committed, but for the last shard.
    """
    place = tmp_path / "out"
    columns = {
        "uri": [f"/media/{n}.jpg" for n in range(5)],
        "version": ["1"] * 5,
        "label": ["cat", "cat", "cat", "dog", "cat"],
        "score": [0.5, float("nan"), None, 1.0, 2.0],
    }
    options: dict[str, Any] = {"shard_rows": 3, "partition_by": ("label",)}
    _, first = freeze(str(place), write_manifest(columns), **options)
    commit(str(place), first, [0], failed={2: "corrupt"})
    commit(str(place), first, [1, 2])
    columns["version"] = ["2", "1", "1", "2", "1"]
    _, second = freeze(str(place), write_manifest(columns, "more"))
    assert second.shards == 2
    commit(str(place), second, [0])
    audit = verify(str(place))
    assert audit.breaches == audit.unfinished == audit.leftovers == []
    return place


@pytest.fixture
def kept(tmp_path: Path, freeze: Callable[..., Any], write_manifest: Callable[..., str]) -> Path:
    """An output that was begun with a checkpoint."""
    place = str(tmp_path / "kept")
    freeze(place, write_manifest({"uri": ["/media/0.jpg"]}))
    config = EmbedConfig(output=place, encoder=str(GOLDENS / "checkpoint-glm4v"))
    record(config, identity(config, "cpu"))
    assert verify(place).breaches == []
    return Path(place)


def one(output: Path, pattern: str) -> Path:
    """The only object that a pattern matches."""
    (path,) = output.glob(pattern)
    return path


KINDS = {
    "embeddings": CAT,
    "errors": f"errors/{SHARD}.parquet",
    "marker": layout.marker(SHARD),
    "part": f"{layout.MANIFESTS}/g000000/*.parquet",
    "generation": layout.generation(0),
    "newest generation": layout.generation(1),
    "run.json": layout.RUN,
    "tower": "_patchflow/encoder/*.safetensors",
}


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """An output, and an object of it of each kind."""
    place: Path = request.getfixturevalue("kept" if request.param == "tower" else "output")
    return place, one(place, KINDS[request.param])


def assert_found(output: Path, path: Path) -> None:
    """The audit names the object, and no command meets it with more than a line."""
    name = str(path.relative_to(output))
    breaches = verify(str(output)).breaches
    assert [breach for breach in breaches if name in breach] != [], breaches
    assert [breach for breach in breaches if "\n" in breach] == []
    for command in (status, plan_retry):
        try:
            command(str(output))
        except PatchflowError as error:
            assert "\n" not in str(error)


def flips(size: int, count: int) -> Iterator[int]:
    """The first and the last byte, and some between them."""
    yield from (0, size - 1)
    yield from random.Random(size).sample(range(1, size - 1), count)


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.whole)])
def test_a_flipped_byte_is_found(target: tuple[Path, Path], count: int) -> None:
    output, path = target
    data = path.read_bytes()
    for position in flips(len(data), count):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert_found(output, path)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["marker", "generation", "run.json"])
def test_a_flipped_bit_of_every_byte_of_json_is_found(output: Path, kind: str) -> None:
    path = one(output, KINDS[kind])
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        name = str(path.relative_to(output))
        assert any(name in breach for breach in verify(str(output)).breaches), position


@pytest.mark.parametrize("length", [0, 0.5, -1])
def test_a_truncated_object_is_found(target: tuple[Path, Path], length: float) -> None:
    output, path = target
    data = path.read_bytes()
    path.write_bytes(data[: length if isinstance(length, int) else len(data) // 2])
    assert_found(output, path)


def test_a_longer_object_is_found(target: tuple[Path, Path]) -> None:
    output, path = target
    path.write_bytes(path.read_bytes() + b"\n")
    assert_found(output, path)


def test_a_missing_object_is_found(target: tuple[Path, Path]) -> None:
    output, path = target
    path.unlink()
    if path != output / layout.marker(SHARD):
        assert_found(output, path)
        return
    # A shard without its marker is open, and will be done again over what is there.
    audit = verify(str(output))
    assert audit.breaches == []
    assert sorted(audit.unfinished) == sorted([CAT, f"errors/{SHARD}.parquet"])


def test_objects_of_everything_damaged_at_once_are_all_found(output: Path) -> None:
    paths = [one(output, KINDS[kind]) for kind in ("embeddings", "errors", "part", "run.json")]
    for path in paths:
        path.write_bytes(path.read_bytes()[::-1])
    for path in paths:
        assert_found(output, path)


def test_a_generation_in_the_middle_that_is_gone_is_found(
    output: Path, write_manifest: Callable[..., str], freeze: Callable[..., Any]
) -> None:
    columns = {"uri": ["/media/9.jpg"], "version": ["1"], "label": ["dog"], "score": [1.0]}
    freeze(str(output), write_manifest(columns, "third"))
    path = output / layout.generation(1)
    path.unlink()
    assert_found(output, path)


def test_damage_on_s3_is_found_as_on_a_disk(
    s3_media: str,
    write_manifest: Callable[..., str],
    freeze: Callable[..., Any],
    commit: Callable[..., list[Marker]],
) -> None:
    output, store = f"{s3_media}/out", storage_for(s3_media)
    _, generation = freeze(output, write_manifest({"uri": ["/media/0.jpg", "/media/1.jpg"]}))
    commit(output, generation, failed={1: "corrupt"})
    kept = f"{s3_media}/kept"
    freeze(kept, write_manifest({"uri": ["/media/0.jpg"]}))
    config = EmbedConfig(output=kept, encoder=str(GOLDENS / "checkpoint-glm4v"))
    record(config, identity(config, "cpu"))
    for place in (output, kept):
        assert verify(place).breaches == []
        for info in list(store.list(place)):
            name, data = info.uri.removeprefix(f"{place}/"), store.read(info.uri)
            damaged = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            for change in (damaged, data[:-1], None):
                if change is None:
                    store.delete(info.uri)
                else:
                    store.write(info.uri, change)
                found = [breach for breach in verify(place).breaches if name in breach]
                # Without its marker a shard is open, without run.json nothing was begun.
                harmless = (layout.COMMITS in name) or (place == kept and name == layout.RUN)
                assert bool(found) != (change is None and harmless), name
                store.write(info.uri, data)
        assert verify(place).breaches == []


# --- forged: the marker vouches for what is wrong -----------------------------------------------


def forge(output: Path, name: str, change: Change, **fields: Any) -> None:
    """Changes an object of the first shard, and all that its marker says of it."""
    path = output / name
    table = change(pq.read_table(io.BytesIO(path.read_bytes()), partitioning=None))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    path.write_bytes(sink.getvalue())
    place = output / layout.marker(SHARD)
    marker = Marker.from_json(place.read_bytes())
    stored = Stored(
        name=name,
        rows=table.num_rows,
        size_bytes=len(sink.getvalue()),
        checksum=digest(sink.getvalue()),
    )
    objects = [stored if o.name == name else o for o in marker.objects]
    place.write_bytes(replace(marker, **{"objects": objects, **fields}).to_json())


def column(name: str, values: list[Any], kind: pa.DataType | None = None) -> Change:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        array = pa.array(values, kind or table.schema.field(index).type)
        return table.set_column(index, name, array)

    return change


OWN = "rows with another"
FORGERIES: dict[str, tuple[Change, dict[str, Any], str]] = {
    "an extra row": (
        lambda table: pa.concat_tables([table, column("item_id", ["0" * 32])(table.slice(0, 1))]),
        {"embedded": 3, "tokens": 4},
        "0 items without a terminal row, 0 with several, 1 unplanned",
    ),
    "a row twice": (
        lambda table: table.take([0, 1, 1]),
        {"embedded": 3, "tokens": 5},
        "0 items without a terminal row, 1 with several, 0 unplanned",
    ),
    "another item's row": (
        lambda table: table.take([0, 0]),
        {"tokens": 2},
        "1 items without a terminal row, 1 with several, 0 unplanned",
    ),
    "two items' rows": (
        lambda table: column("item_id", table["item_id"].to_pylist()[::-1])(table),
        {},
        f"2 {OWN} uri than in the manifest",
    ),
    "a uri": (column("uri", ["/media/0.jpg", "/media/x.jpg"]), {}, f"1 {OWN} uri"),
    "a version": (column("version", ["1", "2"]), {}, f"1 {OWN} version"),
    "no version": (column("version", ["1", None]), {}, f"1 {OWN} version"),
    "a media type": (column("media_type", ["video", "image"]), {}, f"1 {OWN} media_type"),
    "a column of the caller's": (column("score", [0.5, 0.25]), {}, f"1 {OWN} score"),
    "a generation": (column("generation", [0, 1]), {}, "embeddings of another generation"),
    "no hash": (column("content_hash", ["hash0", None]), {}, "content_hash is null"),
    "no width": (column("width", [28, None]), {}, "width is null"),
    "a token count": (column("num_tokens", [2, 1]), {}, "token counts that are not those"),
    "no token count": (column("num_tokens", [3, None]), {}, "null grids or token counts"),
    "a grid": (column("grid_thw", [[1, 2, 2], [1, 2, 6]]), {}, "token counts that are not those"),
    "no grid": (column("grid_thw", [[1, 2, 2], None]), {}, "null grids or token counts"),
    "a negative grid": (
        column("grid_thw", [[1, 2, 2], [-1, -2, 4]]),
        {},
        "token counts that are not those",
    ),
    "a width of vectors": (
        column("embedding", [[0.0] * 5] * 2, pa.list_(pa.float32(), 5)),
        {},
        "[5], not fixed_size_list<item: float>[4]",
    ),
    "a type of vectors": (
        column("embedding", [np.zeros(4, np.float16)] * 2, pa.list_(pa.float16(), 4)),
        {},
        "embedding is fixed_size_list<",
    ),
    "not a number": (
        column("embedding", [[0.0] * 4, [float("nan")] * 4]),
        {},
        "embeddings that are not finite",
    ),
    "no vector": (column("embedding", [[0.0] * 4, None]), {}, "null embeddings"),
    "no column": (lambda table: table.drop_columns("uri"), {}, "no column uri"),
    "a column too many": (
        lambda table: table.append_column("extra", pa.array([1, 2])),
        {},
        "a column extra too many",
    ),
    "a number of tokens": (lambda table: table, {"tokens": 9}, "another number of tokens"),
    "a number of rows": (lambda table: table, {"rows": 9}, "the marker says otherwise"),
    "error counts": (lambda table: table, {"errors": {"empty": 1}}, "the marker says {'empty': 1}"),
    "a configuration": (lambda table: table, {"fingerprint": "0" * 32}, "another configuration"),
    "a partition": (lambda table: table, {"partition": {"label": "dog"}}, "has the partition"),
    "no objects": (lambda table: table, {"objects": []}, "its marker names nothing"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_shard_is_found(output: Path, what: str) -> None:
    change, fields, says = FORGERIES[what]
    forge(output, CAT, change, **fields)
    breaches = verify(str(output)).breaches
    assert [breach for breach in breaches if says in breach] != [], breaches
    assert all(breach.startswith(SHARD) for breach in breaches)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("error_code", ["strange"], "error codes that there are none of: ['strange']"),
        ("error_code", [None], "errors {None: 1}"),
        ("uri", ["/media/x.jpg"], f"1 {OWN} uri"),
        ("version", ["2"], f"1 {OWN} version"),
        ("item_id", ["0" * 32], "1 items without a terminal row, 0 with several, 1 unplanned"),
    ],
)
def test_a_forged_error_is_found(output: Path, name: str, values: list[Any], says: str) -> None:
    forge(output, f"errors/{SHARD}.parquet", column(name, values))
    breaches = verify(str(output)).breaches
    assert [breach for breach in breaches if says in breach] != [], breaches


def test_an_object_that_is_no_parquet_file_is_found_though_its_marker_vouches_for_it(
    output: Path,
) -> None:
    place = output / layout.marker(SHARD)
    marker = Marker.from_json(place.read_bytes())
    data = (output / CAT).read_bytes()[:-9]
    (output / CAT).write_bytes(data)
    forged = replace(marker.objects[0], size_bytes=len(data), checksum=digest(data))
    place.write_bytes(replace(marker, objects=[forged, marker.objects[1]]).to_json())
    (breach,) = verify(str(output)).breaches
    assert breach.startswith(f"{SHARD}: {CAT} is no Parquet file: ")


# --- what belongs elsewhere ---------------------------------------------------------------------


def test_an_object_in_another_partitions_folder_is_found(output: Path) -> None:
    moved = f"embeddings/label=dog/{SHARD}.parquet"
    shutil.move(output / CAT, output / moved)
    place = output / layout.marker(SHARD)
    marker = Marker.from_json(place.read_bytes())
    objects = [replace(marker.objects[0], name=moved), marker.objects[1]]
    place.write_bytes(replace(marker, objects=objects).to_json())
    breaches = verify(str(output)).breaches
    assert f"{moved}: in no marker" in breaches
    assert any(f"its marker names {moved}" in breach and CAT in breach for breach in breaches)


def test_an_object_of_an_open_shard_in_another_folder_is_found(output: Path) -> None:
    # Its commit would not overwrite it, and readers would see its rows twice.
    (output / layout.marker(SHARD)).unlink()
    moved = f"embeddings/label=dog/{SHARD}.parquet"
    shutil.copy(output / CAT, output / moved)
    assert verify(str(output)).breaches == [f"{moved}: in no marker"]


@pytest.mark.parametrize("shard", ["g000000-00000099", "g000009-00000000"])
@pytest.mark.parametrize("folder", ["embeddings/label=cat", "embeddings", "errors"])
def test_an_object_of_no_shard_is_found(output: Path, shard: str, folder: str) -> None:
    stray = f"{folder}/{shard}.parquet"
    shutil.copy(output / CAT, output / stray)
    assert verify(str(output)).breaches == [f"{stray}: in no marker"]


def test_a_marker_of_no_shard_is_found(output: Path) -> None:
    marker = Marker.from_json((output / layout.marker(SHARD)).read_bytes())
    stray = replace(marker, shard="g000000-00000099")
    (output / layout.marker(stray.shard)).write_bytes(stray.to_json())
    assert verify(str(output)).breaches == [f"{stray.shard}: committed, but in no manifest"]


def test_a_marker_of_no_generation_is_found(output: Path) -> None:
    marker = Marker.from_json((output / layout.marker(SHARD)).read_bytes())
    stray = replace(marker, shard="g999999-00000000")
    (output / layout.marker(stray.shard)).write_bytes(stray.to_json())
    assert verify(str(output)).breaches == [
        f"{layout.generation(999999)} is missing; committed: {stray.shard}"
    ]


def test_a_marker_from_another_output_is_found(
    output: Path,
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Callable[..., Any],
    commit: Callable[..., list[Marker]],
) -> None:
    other = tmp_path / "other"
    columns = {"uri": [f"/other/{n}.jpg" for n in range(3)], "label": ["cat"] * 3}
    columns |= {"score": [0.0] * 3}
    options: dict[str, Any] = {"shard_rows": 3, "partition_by": ("label",)}
    _, generation = freeze(str(other), write_manifest(columns, "other"), **options)
    commit(str(other), generation, failed={2: "corrupt"})
    shutil.copy(other / layout.marker(SHARD), output / layout.marker(SHARD))
    assert f"{SHARD}: {CAT} is not what was committed" in verify(str(output)).breaches
    # With all that it names, it is whole, and yet of other items.
    for name in (CAT, f"errors/{SHARD}.parquet"):
        shutil.copy(other / name, output / name)
    assert verify(str(output)).breaches == [
        f"{SHARD}: 3 items without a terminal row, 0 with several, 3 unplanned"
    ]


def test_a_run_json_from_another_output_is_found(output: Path, kept: Path) -> None:
    shutil.copy(kept / layout.RUN, output / layout.RUN)
    breaches = verify(str(output)).breaches
    assert any(breach.startswith("_patchflow/encoder/") for breach in breaches)
    assert f"{SHARD}: its marker is of a run with another configuration" in breaches


# --- what is no breach --------------------------------------------------------------------------


def test_what_others_left_behind_is_counted_and_not_called_broken(output: Path) -> None:
    names = [
        layout.intent(SHARD),
        f"{layout.MANIFESTS}/g000000/lost.parquet",
        f"{layout.MANIFESTS}/g000002/lost.parquet",
    ]
    (open_shard,) = {"g000001-00000000", "g000001-00000001"} - {
        path.stem for path in (output / layout.COMMITS).iterdir()
    }
    for name in (*names, layout.intent(open_shard)):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_bytes(b"decided")
    audit = verify(str(output))
    assert audit.breaches == []
    assert sorted(audit.leftovers) == sorted(names)
    assert audit.unfinished == [layout.intent(open_shard)]


def test_an_intent_of_no_shard_is_found(output: Path) -> None:
    name = layout.intent("g000000-00000099")
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_bytes(b"decided")
    assert verify(str(output)).breaches == [f"{name}: of a shard that is in no manifest"]
