"""Whose fault it is that an item cannot be read: its own, or storage's (invariant 7)."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.blame import fetch_item
from pipeline.errors import ItemError, StorageError
from pipeline.local import LocalStorage
from pipeline.open_file import open_file
from pipeline.reach import Reach
from pipeline.storage import storage_for
from tests.faults.proxy import Asked, Fault, FaultyS3, Rule, this_process_through

DOWN = Fault("status", 503, "SlowDown")
FAILED = Fault("status", 500, "InternalError")
DENIED = Fault("status", 403, "AccessDenied")
EXPIRED = Fault("status", 400, "ExpiredToken")


@pytest.fixture(scope="module")
def proxy(s3: Any) -> Iterator[FaultyS3]:
    with this_process_through(s3.env) as faulty:
        yield faulty


@pytest.fixture
def place(proxy: FaultyS3) -> str:
    """A prefix of ten objects, of which this process has read none."""
    proxy.heal()
    storage_for("s3://")._read.clear()  # type: ignore[attr-defined]
    root = f"s3://media/{uuid.uuid4().hex}"
    for n in range(10):
        storage_for(root).write(f"{root}/{n}", b"data")
    return root


def fetch(uri: str) -> bytes:
    return fetch_item(storage_for(uri), uri, version=None, max_bytes=None).data


def of_the_item(uri: str, fault: Fault) -> Rule:
    """That object alone cannot be read."""

    def rule(asked: Asked) -> Fault | None:
        return fault if f"s3://{asked.key}" == uri and asked.method == "GET" else None

    return rule


@pytest.mark.parametrize("read_before", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (FAILED, "read_failed"),
        (DENIED, "access_denied"),
        (Fault("reset"), "read_failed"),
        (Fault("cut body"), "read_failed"),
        (Fault("status", 400, "InvalidRequest"), "read_failed"),
    ],
    ids=lambda value: f"{value.kind} {value.code}" if isinstance(value, Fault) else "",
)
def test_an_object_that_alone_cannot_be_read_is_an_error_of_that_item(
    proxy: FaultyS3, place: str, fault: Fault, code: str, read_before: bool
) -> None:
    if read_before:
        assert fetch(f"{place}/7") == b"data"
    proxy.rule = of_the_item(f"{place}/0", fault)
    with pytest.raises(ItemError, match=f"{place}/0") as caught:
        fetch(f"{place}/0")
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert fetch(f"{place}/1") == b"data"


@pytest.mark.parametrize("read_before", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    "fault", [DOWN, FAILED, DENIED, EXPIRED, Fault("reset")], ids=lambda f: f"{f.kind} {f.code}"
)
def test_no_item_is_blamed_where_nothing_can_be_read(
    proxy: FaultyS3, place: str, fault: Fault, read_before: bool
) -> None:
    if read_before:
        assert fetch(f"{place}/7") == b"data"
    proxy.rule = lambda asked: fault
    with pytest.raises(StorageError, match=f"{place}/0"):
        fetch(f"{place}/0")


def test_no_item_is_blamed_where_others_are_listed_but_cannot_be_read(
    proxy: FaultyS3, place: str
) -> None:
    listing = "list-type"
    proxy.rule = lambda asked: None if listing in asked.query else FAILED
    with pytest.raises(StorageError):
        fetch(f"{place}/0")


def test_an_outage_that_ends_just_then_costs_nothing(proxy: FaultyS3, place: str) -> None:
    # Ten attempts fail, which is all that a request has.
    proxy.rule = lambda asked: DOWN if asked.key.endswith("/0") and asked.times <= 10 else None
    assert fetch(f"{place}/0") == b"data"
    assert proxy.faults()["status"] == 10


def test_an_outage_that_comes_back_in_between_is_no_items_fault(
    proxy: FaultyS3, place: str
) -> None:
    """It is over when the other object is asked for, once, and then goes on."""
    assert fetch(f"{place}/7") == b"data"
    before = len(proxy.requests)

    def rule(asked: Asked) -> Fault | None:
        return None if len(proxy.requests) - before == 10 else DOWN

    proxy.rule = rule
    with pytest.raises(StorageError):
        fetch(f"{place}/0")
    assert [r.status for r in proxy.requests[before : before + 12]] == [503] * 10 + [206, 503]


def test_a_lone_object_beside_nothing_is_measured_against_the_rest_of_its_bucket(
    proxy: FaultyS3, place: str
) -> None:
    storage_for(place).write(f"{place}-alone/x", b"data")
    proxy.rule = of_the_item(f"{place}-alone/x", FAILED)
    with pytest.raises(ItemError) as caught:
        fetch(f"{place}-alone/x")
    assert caught.value.code == "read_failed"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("status", 404, "NoSuchKey"), "not_found"),
        (Fault("status", 412, "PreconditionFailed"), "version_changed"),
        (Fault("status", 403, "InvalidObjectState"), "access_denied"),
    ],
    ids=lambda value: value.code if isinstance(value, Fault) else "",
)
def test_what_can_only_be_the_items_needs_no_other_object(
    proxy: FaultyS3, place: str, fault: Fault, code: str
) -> None:
    proxy.requests.clear()
    proxy.rule = lambda asked: fault
    with pytest.raises(ItemError) as caught:
        fetch(f"{place}/0")
    assert caught.value.code == code
    assert len(proxy.requests) == 1


# --- a disk -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five good files, `0` to `4`, of which this process has read none."""
    storage_for("/")._read.clear()  # type: ignore[attr-defined]
    for n in range(5):
        (tmp_path / str(n)).write_bytes(b"data")
    return tmp_path


class BadSectors(io.FileIO):
    """A file that can be opened, and not read."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def break_file(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Breaks a file, which no real disk does when it is asked to."""
    broken: set[str] = set()

    def open_any(path: str, reach: Reach | None = None) -> Any:
        return BadSectors(path) if path in broken else open_file(path, reach)

    monkeypatch.setattr("pipeline.local.open_file", open_any)
    return lambda path: broken.add(str(path))


@pytest.mark.parametrize("read_before", [False, True], ids=["first", "later"])
def test_a_file_that_alone_cannot_be_read_is_an_error_of_that_item(
    folder: Path, break_file: Callable[[Path], None], read_before: bool
) -> None:
    if read_before:
        assert fetch(f"{folder}/1") == b"data"
    break_file(folder / "0")
    with pytest.raises(ItemError, match="Input/output error") as caught:
        fetch(f"{folder}/0")
    assert caught.value.code == "read_failed"


def test_no_file_is_blamed_where_none_beside_it_can_be_read(
    folder: Path, break_file: Callable[[Path], None]
) -> None:
    for n in range(5):
        break_file(folder / str(n))
    with pytest.raises(StorageError, match="Input/output error"):
        fetch(f"{folder}/0")


def test_another_mount_does_not_answer_for_one_that_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what the mount had hidden: its mount point looks like any folder then."""
    store, is_mount = LocalStorage(), os.path.ismount
    broken = folder / "disk"
    broken.mkdir()
    (broken / "x").write_bytes(b"data")
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(broken) or is_mount(path))
    for path in (broken / "x", folder / "0"):
        assert store.read(str(path)) == b"data"
    monkeypatch.setattr(os.path, "ismount", is_mount)
    (broken / "x").rename(broken / "hidden")
    assert not store.answers(f"{broken}/y")


def test_a_file_is_not_taken_for_readable_because_it_once_was(
    folder: Path, break_file: Callable[[Path], None]
) -> None:
    assert fetch(f"{folder}/1") == b"data"
    for n in range(5):
        break_file(folder / str(n))
    with pytest.raises(StorageError, match="Input/output error"):
        fetch(f"{folder}/0")


def test_a_file_alone_in_its_folder_is_measured_against_the_one_read_last(
    folder: Path, break_file: Callable[[Path], None]
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "x").write_bytes(b"data")
    break_file(folder / "deep" / "x")
    assert fetch(f"{folder}/0") == b"data"
    with pytest.raises(ItemError) as caught:
        fetch(f"{folder}/deep/x")
    assert caught.value.code == "read_failed"
