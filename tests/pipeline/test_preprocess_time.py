"""What the CPU stage reports of its time: what it waits for, and what it works itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from pipeline.build import nest
from pipeline.objects import Fetched
from pipeline.preprocess import Preprocess
from pipeline.progress import Counts
from processors import MediaInfo
from processors.sandbox import Decoding
from tests.support.preprocessing import preprocess_config, whole
from tests.support.progress import Listener

Rows = Callable[..., pa.Table]


@dataclass
class Slow:
    """A storage that has one file under every name, after a while."""

    data: bytes
    seconds: float = 0.0

    def fetch(self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any) -> Fetched:
        time.sleep(self.seconds)
        return Fetched(data=self.data, version="1")


@pytest.fixture
def storage(photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Slow:
    slow = Slow(photo(60, 40))
    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: slow)
    return slow


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def stage(
    listener: Any, storage: Slow, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Preprocess]:
    monkeypatch.setattr("pipeline.preprocess._NICENESS", 0)  # This process is no actor's.
    with closing(Preprocess(preprocess_config(), listener)) as stage:
        whole(stage(block(manifest_rows, 1)))  # Starts the decoder process.
        listener.calls.clear()
        yield stage


def block(manifest_rows: Rows, items: int) -> pa.Table:
    return nest(manifest_rows([f"/{n}.png" for n in range(items)]), [0, items])


def at_work_s(counts: Counts) -> float:
    return counts.fetch_s + counts.decode_s + counts.resize_s


def test_a_slow_storage_shows_as_fetching(
    stage: Preprocess, listener: Listener, storage: Slow, manifest_rows: Rows
) -> None:
    storage.seconds = 0.1
    began = time.monotonic()
    whole(stage(block(manifest_rows, 32)))
    wall_s = time.monotonic() - began
    (counts,) = listener.calls
    # Eight at once are four times a tenth of a second.
    assert 0.3 < counts.fetch_s <= at_work_s(counts) < wall_s
    assert counts.fetch_s > counts.decode_s + counts.resize_s
    assert (counts.preprocessed, counts.preprocessed_blocks) == (32, 1)


def test_a_slow_decoder_process_shows_as_decoding(
    stage: Preprocess, listener: Listener, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Decoding.info

    def slow(decoding: Decoding) -> MediaInfo:
        time.sleep(0.05)
        return info(decoding)

    monkeypatch.setattr(Decoding, "info", slow)
    whole(stage(block(manifest_rows, 8)))
    (counts,) = listener.calls
    assert counts.decode_s > 0.4
    assert counts.decode_s > counts.fetch_s + counts.resize_s


def test_slow_work_of_its_own_shows_as_resizing_and_whether_it_had_a_cpu(
    stage: Preprocess, listener: Listener, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = stage._processors.images.patches

    def slow(pixels: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return patches(pixels, **options)

    monkeypatch.setattr(stage._processors.images, "patches", slow)
    whole(stage(block(manifest_rows, 8)))
    (counts,) = listener.calls
    assert counts.resize_s > 0.4
    assert counts.resize_s > counts.fetch_s + counts.decode_s
    assert 0 < counts.cpu_s < counts.resize_s - 0.4 + counts.decode_s + counts.fetch_s


def test_calls_that_overlap_take_no_more_time_than_passes(
    stage: Preprocess, listener: Listener, storage: Slow, manifest_rows: Rows
) -> None:
    storage.seconds = 0.05
    blocks = [block(manifest_rows, 16) for _ in range(6)]
    began = time.monotonic()
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(lambda one: whole(stage(one)), blocks))
    wall_s = time.monotonic() - began
    assert len(listener.calls) == 6
    assert 0.5 * wall_s < sum(map(at_work_s, listener.calls)) <= wall_s
