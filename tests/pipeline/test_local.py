"""What only a disk does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ItemError, StorageError
from pipeline.local import LocalStorage
from pipeline.location import canonical

Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def store() -> LocalStorage:
    return LocalStorage()


def fail_at_fsync(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("verb", ["write", "create"])
def test_a_failing_writer_leaves_what_was_there(
    store: LocalStorage, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    store.write(str(tmp_path / "old"), b"old")
    monkeypatch.setattr(os, "fsync", fail_at_fsync)
    for name in ("old", "new"):
        with pytest.raises(StorageError, match="No space left"):
            getattr(store, verb)(str(tmp_path / name), b"data")
    assert files(tmp_path) == {"old": b"old"}


def test_a_failing_upload_leaves_what_was_there(
    store: LocalStorage, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(str(tmp_path / "old"), b"old")
    monkeypatch.setattr(os, "fsync", fail_at_fsync)
    with pytest.raises(StorageError, match="No space left"):
        store.upload(str(tmp_path / "new"), str(tmp_path / "old"))
    assert files(tmp_path) == {"old": b"old"}


def test_a_file_is_whole_before_its_name_exists(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(descriptor: int) -> None:
        seen.append(((tmp_path / "x").exists(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", look)
    store.write(str(tmp_path / "x"), b"12345")
    assert seen[0] == (False, 5)
    assert [exists for exists, _ in seen[1:]] == [True]  # The folder's own fsync, last.


def test_who_reads_the_old_file_reads_it_to_its_end(store: LocalStorage, tmp_path: Path) -> None:
    path, old = str(tmp_path / "x"), bytes(2**22)  # More than a reader has in its buffer.
    store.write(path, old)
    with store.open(path) as file:
        begun = file.read(3)
        store.write(path, b"new")
        assert begun + file.read() == old
    assert store.read(path) == b"new"


def test_what_a_killed_writer_left_is_not_listed(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(descriptor: int) -> None:
        # A kill runs no `finally`: what the temporary file was called is kept as it was.
        (partial,) = tmp_path.iterdir()
        partial.with_name(partial.name + "-killed").write_bytes(partial.read_bytes())
        raise OSError(5, "killed")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(StorageError):
        store.write(str(tmp_path / "x.jpg"), b"half")
    assert len(list(tmp_path.iterdir())) == 1
    assert list(store.list(str(tmp_path))) == []


def test_hidden_files_and_folders_are_not_listed(store: LocalStorage, tmp_path: Path) -> None:
    for name in ("seen.jpg", ".hidden.jpg", ".git/x.jpg", "a/.DS_Store"):
        store.write(str(tmp_path / name), b"")
    assert [info.uri for info in store.list(str(tmp_path))] == [f"{tmp_path}/seen.jpg"]


def test_links_to_files_are_listed_and_dangling_ones_are_not(
    store: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "real").write_bytes(b"12")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    found = [(info.uri, info.size_bytes) for info in store.list(str(tmp_path))]
    assert found == [(f"{tmp_path}/link", 2), (f"{tmp_path}/real", 2)]


def test_a_loop_of_links_ends(store: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [info.uri for info in store.list(str(tmp_path))] == [f"{tmp_path}/a/x"]


def test_a_name_that_is_no_utf_8_is_listed_read_and_written(
    store: LocalStorage, tmp_path: Path
) -> None:
    path = os.fsencode(tmp_path) + b"/\xff \xe9%.jpg"
    Path(os.fsdecode(path)).write_bytes(b"data")
    (info,) = store.list(str(tmp_path))
    assert info.uri == f"file://{tmp_path}/%FF%20%E9%25.jpg"
    assert canonical(os.fsdecode(path)) == canonical(info.uri) == info.uri
    assert store.stat(info.uri) == info
    assert store.fetch(info.uri, version=info.version).data == b"data"
    store.write(info.uri, b"new")
    assert Path(os.fsdecode(path)).read_bytes() == b"new"


def test_a_touched_file_is_another_version(store: LocalStorage, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"same")
    os.utime(path, ns=(10**18, 10**18))
    before = store.stat(str(path))
    os.utime(path, ns=(10**18, 10**18 + 1))
    after = store.stat(str(path))
    assert before is not None and after is not None
    assert (before.version, after.version) == ("4-1000000000000000000", "4-1000000000000000001")


def test_a_file_that_changes_while_it_is_read_is_refused(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    stat, calls = os.fstat, []

    def append_after_the_first_look(descriptor: int) -> os.stat_result:
        found = stat(descriptor)
        if not calls:
            with path.open("ab") as file:
                file.write(b"6")
        calls.append(descriptor)
        return found

    monkeypatch.setattr(os, "fstat", append_after_the_first_look)
    with pytest.raises(ItemError) as caught:
        store.fetch(str(path))
    assert caught.value.code == "version_changed"


def test_a_folder_is_no_object(store: LocalStorage, tmp_path: Path) -> None:
    assert store.stat(str(tmp_path)) is None
    with pytest.raises(ItemError) as caught:
        store.fetch(str(tmp_path))
    assert caught.value.code == "read_failed"


def test_a_name_below_a_file_is_not_there(store: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert store.stat(f"{tmp_path}/x/y") is None
    with pytest.raises(ItemError) as caught:
        store.fetch(f"{tmp_path}/x/y")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize("name", ["a\0b.jpg", "n" * 300 + ".jpg"])
def test_a_name_that_no_disk_can_hold_is_an_error_of_that_item(
    store: LocalStorage, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ItemError):
        store.fetch(f"{tmp_path}/{name}")


def test_a_broken_disk_is_no_items_fault(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"data")

    def fail(descriptor: int) -> os.stat_result:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            store.read(str(tmp_path / "x"))


def test_a_place_where_no_folder_can_be_made_is_a_storage_error(store: LocalStorage) -> None:
    # The kernel answers ENOENT here, which must not pass for "the object does not exist".
    with pytest.raises(StorageError, match="/proc/patchflow"):
        store.write("/proc/patchflow/x", b"")


def test_a_folder_in_the_objects_place_is_a_storage_error(
    store: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(StorageError, match=str(tmp_path / "x")):
        store.write(str(tmp_path / "x"), b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_place_that_no_disk_can_have_is_a_storage_error(
    store: LocalStorage, tmp_path: Path
) -> None:
    place = f"{tmp_path}/{'x' * 300}"
    with pytest.raises(StorageError, match="File name too long"):
        store.check_root(place)
    with pytest.raises(StorageError, match="File name too long"):
        next(store.list(place))
