"""Files are read ahead: as many at a time as storage needs, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from pipeline import fetching
from pipeline.errors import ItemError
from pipeline.fetching import Fetcher
from pipeline.objects import Fetched
from pipeline.reach import Reach

Rows = Callable[..., pa.Table]


@dataclass
class Counting:
    """A storage that has a file under every name, after a while, and counts who asks at once."""

    seconds: float = 0.0
    slow: set[str] = field(default_factory=set)
    missing: str | None = None
    at_once: int = 0
    most: int = 0
    readers: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any) -> Fetched:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.readers.add(threading.current_thread().name)
        time.sleep(0.3 if uri in self.slow else self.seconds)
        with self.lock:
            self.at_once -= 1
        if uri == self.missing:
            raise ItemError("not_found", "the file is gone")
        return Fetched(data=uri.encode(), version="1")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: counting)
    return counting


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    with closing(Fetcher(max_bytes=2**20, reach=Reach(roots=("/",)))) as fetcher:
        yield fetcher


def read(fetcher: Fetcher, rows: pa.Table, decode_s: float) -> list[bytes]:
    """All files, each of which takes so long to decode."""
    found = []
    for _, file in fetcher.files(rows):
        found.append(bytes(file.result().pop().data))
        time.sleep(decode_s)
    return found


def test_what_comes_at_once_is_read_by_two_threads_at_most(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_PROMPT_S", 10.0)  # However busy this machine is.
    names = [f"/{n}.jpg" for n in range(60)]
    assert read(fetcher, manifest_rows(names), 0.003) == [name.encode() for name in names]
    assert storage.most <= 2


def test_where_files_come_at_once_again_fewer_are_asked_for(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.seconds = 0.02
    read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(60)]), 0.003)
    assert storage.most > 4
    monkeypatch.setattr(fetching, "_PROMPT_S", 10.0)
    monkeypatch.setattr(fetching, "_PROMPT_FILES", 16)
    storage.seconds = 0.0
    read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(120)]), 0.0)
    storage.most, storage.seconds = 0, 0.005
    read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(8)]), 0.01)
    assert storage.most == 1


def test_a_block_s_first_file_is_never_late(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows
) -> None:
    storage.seconds = 0.02
    for block in range(8):
        read(fetcher, manifest_rows([f"/{block}-{n}.jpg" for n in range(3)]), 0.05)
    assert storage.most <= 2


def test_what_comes_late_is_asked_for_earlier(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows
) -> None:
    storage.seconds = 0.02
    names = [f"/{n}.jpg" for n in range(120)]
    assert read(fetcher, manifest_rows(names), 0.003) == [name.encode() for name in names]
    assert storage.most > 4


def test_what_always_comes_at_once_is_read_without_a_thread_until_it_does_not(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"/{n}.jpg" for n in range(20)]
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_PROMPT_S", 10.0)
        patch.setattr(fetching, "_PROMPT_FILES", 8)
        read(fetcher, manifest_rows(names), 0.0)
        storage.readers.clear()
        assert read(fetcher, manifest_rows(names), 0.0) == [name.encode() for name in names]
        assert storage.readers == {threading.current_thread().name}
    storage.seconds = 0.02
    assert read(fetcher, manifest_rows(names), 0.0) == [name.encode() for name in names]
    assert len(storage.readers) > 2


@pytest.mark.parametrize(("slow", "one_reader"), [({20, 59}, True), ({20, 21, 22, 23}, False)])
def test_a_late_file_among_many_does_not_bring_threads_back_but_a_few_in_a_row_do(
    fetcher: Fetcher,
    storage: Counting,
    manifest_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    slow: set[int],
    one_reader: bool,
) -> None:
    monkeypatch.setattr(fetching, "_PROMPT_S", 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_PROMPT_FILES", 2)
        read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(9)]), 0.0)
    storage.readers.clear()
    names = [f"/{n}.jpg" for n in range(80)]
    storage.slow = {names[n] for n in slow}
    assert read(fetcher, manifest_rows(names), 0.0) == [name.encode() for name in names]
    assert (storage.readers == {threading.current_thread().name}) is one_reader


def test_a_file_that_cannot_be_read_fails_where_it_is_taken(
    fetcher: Fetcher, storage: Counting, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_PROMPT_S", 10.0)
    monkeypatch.setattr(fetching, "_PROMPT_FILES", 1)
    read(fetcher, manifest_rows(["/1.jpg", "/2.jpg", "/3.jpg"]), 0.0)
    storage.readers.clear()
    storage.missing = "/5.jpg"
    _, before, failed, after = (
        file for _, file in fetcher.files(manifest_rows([f"/{n}.jpg" for n in range(3, 7)]))
    )
    assert storage.readers == {threading.current_thread().name}
    assert (before.result()[0].data, after.result()[0].data) == (b"/4.jpg", b"/6.jpg")
    with pytest.raises(ItemError, match="gone"):
        failed.result()
