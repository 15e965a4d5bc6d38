"""What only a disk does."""

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ItemError, StorageError
from pipeline.local import LocalStorage
from pipeline.location import canonical
from pipeline.open_file import open_file
from pipeline.reach import Reach

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

    def append_before_it_is_read(descriptor: int) -> os.stat_result:
        found = stat(descriptor)
        if len(calls) == 1:  # The first look is at what kind of file it is.
            with path.open("ab") as file:
                file.write(b"6")
        calls.append(descriptor)
        return found

    monkeypatch.setattr(os, "fstat", append_before_it_is_read)
    with pytest.raises(ItemError) as caught:
        store.fetch(str(path))
    assert caught.value.code == "version_changed"


def test_a_folder_is_no_object(store: LocalStorage, tmp_path: Path) -> None:
    assert store.stat(str(tmp_path)) is None
    with pytest.raises(ItemError) as caught:
        store.fetch(str(tmp_path))
    assert caught.value.code == "not_found"


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


# --- killed writers -----------------------------------------------------------------------------


def test_what_killed_writers_left_is_removed_after_a_day(
    store: LocalStorage, tmp_path: Path, files: Files
) -> None:
    left = f".partial-{'0123456789abcdef' * 2}"
    # Hours old, deep and at the top; then what only looks like it.
    ages = {left: 25, f"deep/er/{left}": 25, f"deep/{left}": 23, ".partial-mine": 25, "x": 25}
    for name, hours in ages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
        then = time.time() - hours * 3600
        os.utime(tmp_path / name, (then, then))
    store.clean(str(tmp_path))
    assert set(files(tmp_path)) == {f"deep/{left}", ".partial-mine", "x"}


# --- file systems without hard links ------------------------------------------------------------


def mounted(folder: Path, *args: object) -> Iterator[Path]:
    """`mount ARGS folder`, or a skip where this machine does not let us."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", *map(str, args), folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"not run: {' '.join(done.stderr.split())}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    """A real FAT file system."""
    if shutil.which("mkfs.vfat") is None:
        pytest.skip("not run: there is no mkfs.vfat (dosfstools)")
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(16 * 2**20)
    subprocess.run(["mkfs.vfat", tmp_path / "disk"], capture_output=True, check=True)
    yield from mounted(tmp_path / "fat", "-t", "vfat", "-o", "loop", tmp_path / "disk")


@pytest.fixture
def linkless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where `link` fails as it does on FAT."""

    def refuse(*names: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    return tmp_path


@pytest.fixture(params=["fat", "linkless"])
def no_links(request: pytest.FixtureRequest) -> Path:
    place: Path = request.getfixturevalue(request.param)
    with pytest.raises(PermissionError):
        os.link(__file__, place / "x")
    return place


def test_creating_without_hard_links_leaves_what_is_there(
    store: LocalStorage, no_links: Path, files: Files
) -> None:
    assert store.create(str(no_links / "x"), b"first") is True
    assert store.create(str(no_links / "x"), b"second") is False
    assert files(no_links) == {"x": b"first"}


@pytest.mark.parametrize("place", ["tmp_path", "fat", "linkless"])
def test_of_many_who_create_one_file_at_once_exactly_one_wins(
    store: LocalStorage, files: Files, request: pytest.FixtureRequest, place: str
) -> None:
    folder: Path = request.getfixturevalue(place)
    for round_ in range(20):
        start, won = threading.Barrier(8), []

        def create(number: int) -> None:
            start.wait()  # noqa: B023 (joined below)
            if store.create(f"{folder}/{round_}", b"%d" % number):  # noqa: B023
                won.append(number)  # noqa: B023

        racers = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(won) == 1
        assert (folder / str(round_)).read_bytes() == b"%d" % won[0]
    assert len(files(folder)) == 20


def test_a_file_system_with_neither_way_is_told_in_a_line(
    store: LocalStorage, linkless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        @staticmethod
        def renameat2(*args: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: Libc)
    with pytest.raises(StorageError, match="neither hard links nor exclusive renames"):
        store.create(str(linkless / "x"), b"data")
    assert list(linkless.iterdir()) == []


# --- versions are sizes and times ---------------------------------------------------------------


def test_a_file_replaced_by_another_of_the_same_size_is_another_version(
    store: LocalStorage, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old!")
    os.utime(path, (1000, 1000))
    planned = store.stat(str(path))
    assert planned is not None
    (tmp_path / "new").write_bytes(b"new!")
    (tmp_path / "new").replace(path)
    with pytest.raises(ItemError, match="planned as version 4-1000000000000") as caught:
        store.fetch(str(path), version=planned.version)
    assert caught.value.code == "version_changed"


@pytest.mark.parametrize("jump_s", [-(10**9), 10**9], ids=["back", "into the future"])
def test_a_clock_that_jumps_makes_another_version_and_no_more(
    store: LocalStorage, tmp_path: Path, jump_s: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"data")
    planned = store.stat(str(path))
    then = time.time() + jump_s
    os.utime(path, (then, then))
    found = store.stat(str(path))
    assert planned is not None and found is not None
    assert store.fetch(str(path), version=found.version).data == b"data"
    with pytest.raises(ItemError) as caught:
        store.fetch(str(path), version=planned.version)
    assert caught.value.code == "version_changed"


def test_a_file_that_is_rewritten_in_place_while_it_is_read_is_refused(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    os.utime(path, (1000, 1000))
    stat, calls = os.fstat, []

    def rewrite_before_it_is_read(descriptor: int) -> os.stat_result:
        found = stat(descriptor)
        if len(calls) == 1:
            with path.open("r+b") as file:
                file.write(b"abcde")
        calls.append(descriptor)
        return found

    monkeypatch.setattr(os, "fstat", rewrite_before_it_is_read)
    with pytest.raises(ItemError) as caught:
        store.fetch(str(path))
    assert caught.value.code == "version_changed"


# --- mounts -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    yield from mounted(tmp_path / "disk", "-t", "tmpfs", "none")


def test_files_on_a_mount_that_has_vanished_are_no_items_errors(
    store: LocalStorage, disk: Path, tmp_path: Path
) -> None:
    for folder in (disk / "deep", tmp_path / "other"):
        folder.mkdir()
        (folder / "x").write_bytes(b"data")
        assert store.read(f"{folder}/x") == b"data"
    with pytest.raises(ItemError):
        store.fetch(f"{disk}/deep/y")
    subprocess.run(["umount", disk], check=True)
    for gone in (f"{disk}/deep/x", f"{disk}/never"):
        with pytest.raises(StorageError, match=f"{disk} is no longer mounted"):
            store.fetch(gone)
    with pytest.raises(ItemError) as caught:
        store.fetch(f"{tmp_path}/other/y")
    assert caught.value.code == "not_found"


def test_links_of_one_folder_may_lead_to_several_mounts(
    store: LocalStorage, disk: Path, tmp_path: Path
) -> None:
    for number in range(2):
        (disk / str(number)).write_bytes(b"data")
    # The same file system twice: a link's device does not tell which mount it leads to.
    (tmp_path / "links").mkdir()
    for twice in mounted(tmp_path / "again", "--bind", str(disk)):
        for number, place in enumerate((disk, twice)):
            (tmp_path / f"links/{number}").symlink_to(place / str(number))
            assert store.read(f"{tmp_path}/links/{number}") == b"data"
        subprocess.run(["umount", twice], check=True)
        with pytest.raises(StorageError, match=f"{twice} is no longer mounted"):
            store.fetch(f"{tmp_path}/links/1")
        assert store.read(f"{tmp_path}/links/0") == b"data"


# --- what is no regular file, and where links lead ----------------------------------------------


@pytest.fixture
def bound_socket(tmp_path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        yield tmp_path / "socket.jpg"


def code_of_fetching(store: LocalStorage, path: object, **options: Any) -> str:
    with pytest.raises(ItemError) as caught:
        store.fetch(str(path), max_bytes=2**20, **options)
    assert caught.value.message.isprintable()
    return caught.value.code


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/tty", "/dev/stdin"])
def test_devices_are_no_objects(store: LocalStorage, device: str) -> None:
    assert store.stat(device) is None
    assert code_of_fetching(store, device) == "not_found"


def test_pipes_and_sockets_are_no_objects_and_nobody_waits(
    store: LocalStorage, tmp_path: Path, bound_socket: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    for path in (bound_socket, tmp_path / "pipe.jpg", tmp_path / "link.jpg"):
        assert store.stat(str(path)) is None
        assert code_of_fetching(store, path) == "not_found"
        with pytest.raises(StorageError, match="a pipe, a socket or a device"):
            store.open(str(path))
    assert list(store.list(str(tmp_path))) == []


@pytest.mark.parametrize("name", ["environ", "pagemap", "fd/0", "mem"])
def test_what_the_kernel_makes_up_is_not_read(store: LocalStorage, name: str) -> None:
    """Some of it goes on for ever, and some waits."""
    place = f"/proc/self/{name}"
    with suppress(ItemError):
        assert store.fetch(place, max_bytes=2**20).data == b""


def test_a_sparse_file_of_a_terabyte_is_too_large(store: LocalStorage, tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)
    assert code_of_fetching(store, tmp_path / "x") == "too_large"


def test_a_file_that_grows_faster_than_it_is_read_is_read_no_further(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    stat, calls = os.fstat, []

    def grow_before_it_is_read(descriptor: int) -> os.stat_result:
        found = stat(descriptor)
        if len(calls) == 1:
            os.truncate(path, 2**40)
        calls.append(descriptor)
        return found

    monkeypatch.setattr(os, "fstat", grow_before_it_is_read)
    assert code_of_fetching(store, path) == "version_changed"


def test_a_link_out_of_reach_is_denied_and_says_where_it_leads(
    store: LocalStorage, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out\x1b[2J"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "x.jpg").write_bytes(b"data")
    (inside / "out.jpg").symlink_to(outside / "x.jpg")
    (inside / "in.jpg").symlink_to("x.jpg")
    (inside / "folder").symlink_to(outside)
    reach = Reach(roots=(str(inside),))
    assert store.fetch(f"{inside}/in.jpg", reach=reach).data == b"data"
    for name in ("out.jpg", "folder/x.jpg"):
        with pytest.raises(ItemError) as caught:
            store.fetch(f"{inside}/{name}", reach=reach)
        assert caught.value.code == "access_denied"
        assert caught.value.message == (
            f"it leads to {str(outside / 'x.jpg')!r}, out of the inputs' folders; --follow-links "
            "goes there"
        )
        followed = Reach(roots=(str(inside),), follow_links=True)
        assert store.fetch(f"{inside}/{name}", reach=followed).data == b"data"


@pytest.mark.parametrize("swapped", ["the file", "its folder"])
def test_a_path_that_is_swapped_all_the_time_never_leads_out(
    store: LocalStorage, tmp_path: Path, swapped: str
) -> None:
    """Someone exchanges the file, or its folder, for a link and back as fast as can be."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "a", outside):
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(b"theirs" if folder == outside else b"ours")
    place = inside / "a" if swapped == "its folder" else inside / "a" / "x"
    link, real = tmp_path / "link", tmp_path / "real"
    link.symlink_to(outside if swapped == "its folder" else outside / "x")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            place.rename(real)
            link.rename(place)
            place.rename(link)
            real.rename(place)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen, reach = Counter[str](), Reach(roots=(str(inside),))
    try:
        for _ in range(3000):
            try:
                seen[store.fetch(f"{inside}/a/x", reach=reach).data.decode()] += 1
            except ItemError as error:
                seen[error.code] += 1
    finally:
        stop.set()
        swapper.join()
    assert seen["ours"] and seen["access_denied"]
    assert set(seen) <= {"ours", "access_denied", "not_found", "version_changed"}


@pytest.mark.parametrize("name", ["a.jpg", "a.jpg (deleted)"])
def test_a_file_that_is_replaced_while_it_is_opened_leads_nowhere_else(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    reach = Reach(roots=(str(path),))
    open_file(str(path), reach).close()
    with path.open("rb") as held:
        path.unlink()
        with open_file(f"/proc/self/fd/{held.fileno()}", reach) as file:
            assert file.read() == b"x"


def test_a_path_that_is_swapped_once_it_was_read_is_no_failure(
    store: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, is_mount = tmp_path / "x", os.path.ismount
    path.write_bytes(b"x")

    def swapped(folder: str | Path) -> bool:
        if str(folder) == str(path):
            raise FileNotFoundError(folder)  # As between two looks at a link.
        return is_mount(folder)

    monkeypatch.setattr(os.path, "ismount", swapped)
    assert store.fetch(str(path)).data == b"x"
