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
from pipeline.fetching import Fetcher
from pipeline.objects import Fetched
from pipeline.reach import Reach

Rows = Callable[..., pa.Table]


@dataclass
class Counting:
    """A storage that has a file under every name, after a while, and counts who asks at once."""

    seconds: float = 0.0
    at_once: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any) -> Fetched:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        with self.lock:
            self.at_once -= 1
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
    read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(60)]), 0.0)
    storage.most, storage.seconds = 0, 0.005
    read(fetcher, manifest_rows([f"/{n}.jpg" for n in range(8)]), 0.01)
    assert storage.most == 2


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
