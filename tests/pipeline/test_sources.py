import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import InputConfig
from pipeline.errors import UsageError
from pipeline.location import canonical
from pipeline.media_types import media_type
from pipeline.sources import Skipped, candidates, reach_of_inputs
from pipeline.storage import storage_for

WriteManifest = Callable[..., str]
pytestmark = pytest.mark.usefixtures("manifests_read_apart")


# Where the items of most of these manifests are said to lie.
ANYWHERE = ("/", "s3://b")


def tables(
    *inputs: str, skipped: Skipped | None = None, root: tuple[str, ...] = (), links: bool = False
) -> list[pa.Table]:
    """The tables of candidates, in order."""
    reach = reach_of_inputs(InputConfig(inputs=inputs, root=root, follow_links=links))
    return list(candidates(inputs, reach, skipped or Skipped()))


def uris(*inputs: str, root: tuple[str, ...] = ANYWHERE) -> list[str]:
    """The uris of all candidates, in order."""
    return [uri for table in tables(*inputs, root=root) for uri in table["uri"].to_pylist()]


def only_table(*inputs: str) -> pa.Table:
    (table,) = tables(*inputs, root=ANYWHERE)
    return table


def put(root: str, *names: str) -> None:
    for name in names:
        storage_for(root).write(f"{root}/{name}", b"data")


def below(root: str, *names: str) -> list[str]:
    return [f"{root}/{name}" for name in names]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/a/b.jpg", "image"),
        ("s3://b/x.y/PHOTO.TIFF", "image"),
        ("a.webp", "image"),
        ("a.mp4", "video"),
        ("a.MKV", "video"),
        ("a.txt", None),
        ("a.jpg/b", None),
        (".jpg", None),
        ("", None),
    ],
)
def test_the_suffix_tells_the_media_type(name: str, kind: str | None) -> None:
    assert media_type(name) == kind


def test_a_folder_gives_its_media_and_counts_the_rest(root: str) -> None:
    put(root, "b/deep/2.PNG", "a.jpg", "clip.mp4", "notes.txt", "b/x.TXT", "b/README")
    skipped = Skipped()
    (table,) = tables(root, skipped=skipped)
    infos = {info.uri: info for info in storage_for(root).list(root)}
    names = below(root, "a.jpg", "b/deep/2.PNG", "clip.mp4")
    assert table.to_pylist() == [
        {"uri": uri, "version": infos[uri].version, "size_bytes": 4, "media_type": kind}
        for uri, kind in zip(names, ("image", "image", "video"), strict=True)
    ]
    assert skipped.by_suffix == {".txt": 2, "no suffix": 1}


def test_hidden_files_of_a_folder_are_no_items(tmp_path: Path) -> None:
    root = str(tmp_path)
    put(root, ".a.jpg", ".cache/b.jpg", "c.jpg")
    assert uris(root) == below(root, "c.jpg")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["1.jpg", "2.jpg"]),
        ("?.jpg", ["1.jpg", "2.jpg"]),
        ("[13].jpg", ["1.jpg"]),
        ("[!1].jpg", ["2.jpg"]),
        ("*/*.jpg", ["a/10.jpg", "a/3.jpg"]),
        ("**/*.jpg", ["1.jpg", "2.jpg", "a/10.jpg", "a/3.jpg", "a/b/4.jpg"]),
        ("a/**", ["a/10.jpg", "a/3.jpg", "a/b/4.jpg", "a/b/5.png"]),
        ("*/b/*", ["a/b/4.jpg", "a/b/5.png"]),
        ("*.gif", []),
    ],
)
def test_a_glob_gives_what_it_matches(root: str, pattern: str, names: list[str]) -> None:
    put(root, "1.jpg", "2.jpg", "a/3.jpg", "a/10.jpg", "a/b/4.jpg", "a/b/5.png", "a/x.txt")
    assert uris(f"{root}/{pattern}") == below(root, *names)


@pytest.mark.parametrize("pattern", ["**.jpg", "a**/x.jpg"])
def test_a_glob_that_cannot_be_is_refused_by_name(root: str, pattern: str) -> None:
    put(root, "1.jpg")
    with pytest.raises(UsageError) as caught:
        uris(f"{root}/{pattern}")
    assert pattern in str(caught.value)


@pytest.mark.parametrize("name", ["holiday[1].jpg", "what?.jpg", "five*.jpg"])
def test_a_file_whose_name_looks_like_a_glob_is_that_file(root: str, name: str) -> None:
    put(root, name, "holiday1.jpg", "whats.jpg", "five5.jpg")
    assert uris(f"{root}/{name}") == below(root, name)


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder(root: str) -> None:
    put(root, "set [a]/1.jpg", "set a/2.jpg")
    assert uris(f"{root}/set [a]") == below(root, "set [a]/1.jpg")


def test_a_single_file_is_an_input(root: str) -> None:
    put(root, "1.jpg", "2.jpg", "1.jpg.txt")
    assert uris(f"{root}/1.jpg") == below(root, "1.jpg")


def test_inputs_are_taken_in_order_with_their_duplicates(root: str) -> None:
    put(root, "1.jpg", "2.jpg")
    expected = below(root, "2.jpg", "1.jpg", "2.jpg")
    assert uris(f"{root}/2.jpg", root) == expected


def test_a_relative_input_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), "photos/1.jpg")
    monkeypatch.chdir(tmp_path / "photos")
    assert uris("../photos") == below(str(tmp_path), "photos/1.jpg")
    assert uris("*.jpg") == below(str(tmp_path), "photos/1.jpg")


@pytest.mark.parametrize("name", ["none", "none/*.jpg", "none.parquet", "1.jpg/2.jpg"])
def test_what_does_not_exist_is_refused_by_name(root: str, name: str) -> None:
    put(root, "1.jpg")
    with pytest.raises(UsageError, match="does not exist") as caught:
        uris(f"{root}/{name}")
    assert repr(f"{root}/{name}") in str(caught.value)


def test_a_folder_whose_name_is_no_utf_8_is_globbed_as_any(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    put(canonical(str(folder)), "1.jpg", "2.png")
    assert uris(str(folder)) == [canonical(str(folder / name)) for name in ("1.jpg", "2.png")]
    assert uris(f"{folder}/*.jpg") == [canonical(f"{folder}/1.jpg")]


# Manifests


def test_a_manifest_of_uris_alone_leaves_the_rest_open(write_manifest: WriteManifest) -> None:
    names = ["/m/a.jpg", "s3://b/c.mp4", "/m/plain"]
    table = only_table(write_manifest({"uri": names}))
    assert table.to_pylist() == [
        {"uri": uri, "version": None, "size_bytes": None, "media_type": kind}
        for uri, kind in zip(names, ("image", "video", "image"), strict=True)
    ]


def test_what_a_manifest_says_of_its_items_is_taken(write_manifest: WriteManifest) -> None:
    given = {
        "media_type": ["video", "image", None, "pdf", "Video/MP4"],
        "uri": ["/m/a.jpg", "/m/b.mp4", "/m/c.mp4", "/m/d", "/m/e"],
        "size_bytes": pa.array([1, 2, None, 4, 5], pa.int32()),
        "version": pa.array([10, 20, None, 40, 50], pa.int64()),
    }
    assert only_table(write_manifest(given)).to_pylist() == [
        {"uri": "/m/a.jpg", "version": "10", "size_bytes": 1, "media_type": "video"},
        {"uri": "/m/b.mp4", "version": "20", "size_bytes": 2, "media_type": "image"},
        {"uri": "/m/c.mp4", "version": None, "size_bytes": None, "media_type": "video"},
        {"uri": "/m/d", "version": "40", "size_bytes": 4, "media_type": "image"},
        {"uri": "/m/e", "version": "50", "size_bytes": 5, "media_type": "video"},
    ]


def test_a_manifests_own_columns_follow_with_their_types(write_manifest: WriteManifest) -> None:
    own = pa.table(
        {
            "label": pa.array(["x", None]),
            "score": pa.array([0.5, 1.5], pa.float32()),
            "tags": pa.array([["a", "b"], []], pa.list_(pa.string())),
            "taken": pa.array([0, 1], pa.timestamp("us", "UTC")),
        }
    )
    table = only_table(write_manifest(own.append_column("uri", pa.array(["/a.jpg", "/b.jpg"]))))
    assert table.select(own.column_names).equals(own)
    assert table.column_names == ["uri", "version", "size_bytes", "media_type", *own.column_names]


def test_relative_uris_are_taken_from_the_manifests_folder(
    write_manifest: WriteManifest, tmp_path: Path
) -> None:
    given = ["a.jpg", "deep/b c%20.jpg", "../up.jpg", "/abs.jpg", "s3://b/k", "file:///f%20g.jpg"]
    folder, up = str(tmp_path), str(tmp_path.parent)
    assert uris(write_manifest({"uri": given})) == [
        f"{folder}/a.jpg",
        f"{folder}/deep/b c%20.jpg",
        f"{up}/up.jpg",
        "/abs.jpg",
        "s3://b/k",
        "/f g.jpg",
    ]


def test_relative_uris_of_a_manifest_on_s3_are_keys_beside_it(
    s3_media: str, write_manifest: WriteManifest
) -> None:
    place = f"{s3_media}/lists/items.parquet"
    storage_for(place).upload(place, write_manifest({"uri": ["a.jpg", "/local.jpg"]}))
    assert uris(place) == [f"{s3_media}/lists/a.jpg", "/local.jpg"]


def test_a_manifest_may_hold_large_strings(write_manifest: WriteManifest) -> None:
    assert uris(write_manifest({"uri": pa.array(["/a.jpg"], pa.large_string())})) == ["/a.jpg"]


def test_a_manifest_with_several_row_groups_is_read_in_order(
    write_manifest: WriteManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.input_manifest.BATCH_ROWS", 3)
    names = [f"/{n}.jpg" for n in range(10)]
    found = tables(write_manifest({"uri": names}), root=ANYWHERE)
    assert [table.num_rows for table in found] == [3, 3, 3, 1]
    assert [uri for table in found for uri in table["uri"].to_pylist()] == names


def test_a_glob_of_manifests_reads_them_all(write_manifest: WriteManifest, tmp_path: Path) -> None:
    write_manifest({"uri": ["/2.jpg"]}, "b")
    write_manifest({"uri": ["/1.jpg"]}, "a")
    assert uris(f"{tmp_path}/*.parquet") == ["/1.jpg", "/2.jpg"]


def test_an_empty_manifest_has_no_candidates(write_manifest: WriteManifest) -> None:
    assert uris(write_manifest({"uri": pa.array([], pa.string())})) == []


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"url": ["/a.jpg"], "x": [1]}, "no `uri` column; it has 'url, x'"),
        ({"uri": [1]}, "the `uri` column must be strings, it is int64"),
        ({"uri": [["/a.jpg"]]}, "the `uri` column must be strings, it is list"),
        ({"uri": ["/a.jpg", None]}, "a `uri` is null"),
        ({"uri": ["/a.jpg"], "embedding": [1]}, "the column 'embedding'"),
        ({"uri": ["/a.jpg"], "error_code": [1]}, "the column 'error_code'"),
        ({"uri": ["/a.jpg"], "patches": [1]}, "the column 'patches'"),
        ({"uri": ["/a.jpg"], "Label": [1], "label": [2]}, "'Label' and 'label' collide"),
        ({"uri": ["/a.jpg"], "Width": [1]}, "'Width'"),
        ({"uri": ["/a.jpg"], "URI": ["/b.jpg"]}, "'URI'"),
        ({"uri": ["/a.jpg"], "size_bytes": ["large"]}, "size_bytes"),
        ({"uri": ["/a.jpg"], "version": [["1"]]}, "version"),
        ({"uri": ["http://h/a.jpg"]}, "http://h/a.jpg"),
        (pa.table([["/a.jpg"], ["/b.jpg"]], ["uri", "uri"]), "uri"),
        (pa.table([["/a.jpg"], [1], [2]], ["uri", "x", "x"]), "'x' and 'x' collide"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_manifest_is_refused_and_the_reason_named(
    write_manifest: WriteManifest, columns: dict[str, list[object]] | pa.Table, says: str
) -> None:
    location = write_manifest(columns)
    with pytest.raises(UsageError) as caught:
        uris(location)
    line = str(caught.value)
    assert says in line
    assert location in line or "http" in line
    assert "\n" not in line


@pytest.mark.parametrize("column", ["item_id", "shard"])
def test_a_column_that_patchflow_fills_is_refused_rather_than_lost(
    write_manifest: WriteManifest, column: str
) -> None:
    with pytest.raises(UsageError, match=column):
        uris(write_manifest({"uri": ["/a.jpg"], column: ["mine"]}))


def test_text_in_a_manifest_that_is_no_utf_8_is_refused(write_manifest: WriteManifest) -> None:
    raw = pa.array([b"/caf\xe9.jpg"]).view(pa.string())
    location = write_manifest({"uri": raw})
    with pytest.raises(UsageError, match="UTF8"):
        uris(location)


@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_what_is_no_parquet_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(content)
    with pytest.raises(
        UsageError, match=r"items\.parquet is not a readable Parquet file"
    ) as caught:
        uris(str(path))
    assert "\n" not in str(caught.value)


def test_a_damaged_page_of_a_manifest_is_refused_by_name(
    tmp_path: Path, write_manifest: WriteManifest
) -> None:
    path = Path(write_manifest({"uri": [f"/{n}.jpg" for n in range(100)]}))
    data = bytearray(path.read_bytes())
    data[10:80] = b"\xff" * 70
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"items\.parquet is not a readable Parquet file"):
        uris(str(path))
