"""What every kind of storage promises, on a disk and on a real S3 server alike."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ItemError, StorageError, UsageError
from pipeline.location import canonical, digest, item_id, join, local_path, suffix
from pipeline.storage import storage_for

HARD_NAMES = [
    "two words.jpg",
    "what?.jpg",
    "what?x=1&y=2.jpg",
    "100%.jpg",
    "p%20c.jpg",
    "a#b.jpg",
    "été-中-🐈.jpg",
    "[ab]*.jpg",
    "plus+and&co=1;,@$!'().jpg",
    "~tilde",
    "no suffix",
]


@pytest.fixture
def local_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_bytes(b"text")
    return path


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert canonical("photos/../x y.jpg") == f"{tmp_path}/x y.jpg"
    assert canonical(".") == str(tmp_path)
    assert canonical("photos/") == f"{tmp_path}/photos"


def test_an_absolute_path_stays() -> None:
    assert canonical("/data/100%25?#.jpg") == "/data/100%25?#.jpg"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert canonical(str(tmp_path / "link")) == f"{tmp_path}/link"


def test_a_file_uri_becomes_a_path() -> None:
    assert canonical("file:///data/a%20b%25.jpg") == "/data/a b%.jpg"


@pytest.mark.parametrize("uri", ["s3://b/k", "s3://b/a//b/../%20?#", "s3://b", "s3://b/p/"])
def test_an_s3_key_is_taken_letter_for_letter(uri: str) -> None:
    assert canonical(uri) == uri


@pytest.mark.parametrize("uri", ["http://h/x.jpg", "https://h/x.jpg", "gs://b/k", "S3://b/k"])
def test_other_schemes_are_refused_by_name(uri: str) -> None:
    with pytest.raises(UsageError, match=uri):
        canonical(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3:///key"])
def test_an_s3_uri_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="names no bucket"):
        canonical(uri)


@given(st.binary(min_size=1, max_size=12).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
def test_any_file_name_round_trips_and_is_utf_8(raw: bytes) -> None:
    path = os.fsdecode(b"/data/x" + raw)
    uri = canonical(path)
    assert local_path(uri) == path
    assert canonical(uri) == uri
    assert len(item_id(uri)) == 32


def test_ids_are_128_bits_of_blake2b_in_hex() -> None:
    assert item_id("") == digest(b"") == "cae66941d9efbd404e4d88758ea67670"


def test_names_and_suffixes() -> None:
    assert join("/out/", "a/b") == join("/out", "a/b") == "/out/a/b"
    assert join("s3://b", "a") == "s3://b/a"
    assert suffix("s3://b/x.y/Photo.JPG") == ".jpg"
    assert suffix("s3://b/x.y/photo") == ""


def test_what_is_written_is_read_back_whole(root: str) -> None:
    store, data = storage_for(root), bytes(range(256)) * 5000
    store.write(f"{root}/deep/er/x", data)
    assert store.read(f"{root}/deep/er/x") == data
    with store.open(f"{root}/deep/er/x") as file:
        file.seek(1_000_000)
        assert file.read(7) == data[1_000_000:1_000_007]


@pytest.mark.parametrize("name", HARD_NAMES)
def test_a_name_is_taken_letter_for_letter(root: str, name: str) -> None:
    store, uri = storage_for(root), f"{root}/{name}"
    assert store.create(uri, b"first")
    assert not store.create(uri, b"second")
    assert store.read(uri) == b"first"
    store.write(uri, b"third")
    with store.open(uri) as file:
        assert file.read() == b"third"
    (listed,) = store.list(root)
    assert listed == store.stat(uri)
    assert (listed.uri, listed.size_bytes) == (uri, 5)


def test_writing_replaces_what_is_there(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"a long first version")
    store.write(f"{root}/x", b"short")
    assert store.read(f"{root}/x") == b"short"


def test_creating_leaves_what_is_there(root: str) -> None:
    store = storage_for(root)
    assert store.create(f"{root}/x", b"first") is True
    assert store.create(f"{root}/x", b"second") is False
    assert store.read(f"{root}/x") == b"first"


def test_an_upload_publishes_a_local_file(root: str, local_file: Path) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"what was there before")
    store.upload(f"{root}/x", str(local_file))
    assert store.read(f"{root}/x") == b"text"
    assert local_file.read_bytes() == b"text"


def test_an_empty_object_is_an_object(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"")
    assert store.read(f"{root}/x") == b""
    (listed,) = store.list(root)
    assert listed.size_bytes == 0


def test_a_listing_is_sorted_and_the_same_each_time(root: str) -> None:
    store = storage_for(root)
    for name in ("b/2", "a/10", "c", "a/9", "b/1"):
        store.write(f"{root}/{name}", b"")
    names = [f"{root}/{name}" for name in ("a/10", "a/9", "b/1", "b/2", "c")]
    assert [info.uri for info in store.list(root)] == names
    assert [info.uri for info in store.list(f"{root}/a")] == names[:2]
    assert [info.uri for info in store.list(f"{root}/a/")] == names[:2]


def test_a_folder_is_not_listed_with_what_only_begins_like_it(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/cat/1", b"")
    store.write(f"{root}/cats/2", b"")
    assert [info.uri for info in store.list(f"{root}/cat")] == [f"{root}/cat/1"]


def test_a_version_changes_with_the_content(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"one")
    before = store.stat(f"{root}/x")
    assert before is not None
    assert store.stat(f"{root}/x") == before
    assert store.fetch(f"{root}/x", version=before.version).data == b"one"
    store.write(f"{root}/x", b"another")
    after = store.stat(f"{root}/x")
    assert after is not None
    assert after.version != before.version
    with pytest.raises(ItemError, match=before.version) as caught:
        store.fetch(f"{root}/x", version=before.version)
    assert caught.value.code == "version_changed"


def test_what_is_not_there_is_not_found(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"")
    assert store.stat(f"{root}/y") is None
    with pytest.raises(ItemError) as caught:
        store.fetch(f"{root}/y")
    assert caught.value.code == "not_found"
    with pytest.raises(FileNotFoundError):
        store.open(f"{root}/y")
    with pytest.raises(FileNotFoundError):
        list(store.list(f"{root}/y"))


def test_a_larger_object_than_allowed_is_refused(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"12345")
    assert store.fetch(f"{root}/x", max_bytes=5).data == b"12345"
    with pytest.raises(ItemError, match="5 bytes, the limit is 4") as caught:
        store.fetch(f"{root}/x", max_bytes=4)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("verb", ["write", "create", "upload"])
def test_a_name_below_a_file_cannot_be_written_and_one_line_says_so(
    tmp_path: Path, local_file: Path, files: Callable[[Path], dict[str, bytes]], verb: str
) -> None:
    before = files(tmp_path)
    place = f"{local_file}/deep/x"
    with pytest.raises(StorageError, match=place) as caught:
        if verb == "upload":
            storage_for(place).upload(place, str(local_file))
        else:
            getattr(storage_for(place), verb)(place, b"data")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_cleaning_where_nothing_is_left_touches_nothing(root: str) -> None:
    store = storage_for(root)
    store.clean(root)
    store.write(f"{root}/x", b"data")
    store.clean(root)
    assert store.read(f"{root}/x") == b"data"


def test_another_object_answers_for_one_that_is_not_there(root: str) -> None:
    store = storage_for(root)
    store.write(f"{root}/x", b"data")
    assert store.answers(f"{root}/y")
