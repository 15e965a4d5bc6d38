"""Blocks that a preprocessing call passes on, and calls that decode at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.build import nest
from pipeline.preprocess import Preprocess
from processors import ImageOptions
from tests.support.preprocessing import preprocess_config, whole
from tests.support.progress import Listener

OPTIONS = ImageOptions(min_pixels=2 * 28 * 28, max_pixels=2 * 28 * 28 * 64)
# Of 56 x 56 pixels: 16 patches of 588 bytes.
STILL_BYTES = 16 * 588
Rows = Callable[..., pa.Table]


@pytest.fixture(autouse=True)
def _this_process_is_no_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preprocess._NICENESS", 0)


@pytest.fixture
def stills(tmp_path: Path, photo: Callable[..., bytes], manifest_rows: Rows) -> pa.Table:
    """One nested block of five stills, with a file that is not there as the third row."""
    names = [f"{tmp_path}/{number}.png" for number in range(6)]
    for number in (0, 1, 3, 4, 5):
        Path(names[number]).write_bytes(photo(56, 56))
    return nest(manifest_rows(names), [0, 6])


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def stage(listener: Any) -> Iterator[Preprocess]:
    with closing(Preprocess(preprocess_config(OPTIONS), listener)) as stage:
        yield stage


def test_a_block_is_passed_on_as_soon_as_it_is_full(
    stage: Preprocess, stills: pa.Table, listener: Listener
) -> None:
    together = whole(stage(stills))
    listener.calls.clear()
    stage._config = replace(stage._config, block_bytes=2 * STILL_BYTES)
    parts = list(stage(stills))
    # A row without patches fills nothing.
    assert [part.num_rows for part in parts] == [2, 3, 1]
    assert pa.concat_tables(parts).equals(together)
    (counts,) = listener.calls
    assert (counts.preprocessed, counts.preprocessed_blocks) == (6, 1)
    assert (counts.stills, counts.still_patch_bytes) == (5, 5 * STILL_BYTES)


def test_a_call_whose_last_block_is_full_has_no_empty_one(
    stage: Preprocess, stills: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage._config = replace(stage._config, block_bytes=5 * STILL_BYTES)
    (part,) = stage(stills)
    assert part[schema.PLACE.name].to_pylist() == list(range(6))


def test_a_still_that_is_larger_than_a_block_is_one(
    stage: Preprocess, stills: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage._config = replace(stage._config, block_bytes=1)
    assert [part.num_rows for part in stage(stills)] == [1, 1, 2, 1, 1]


def test_the_time_that_a_block_waits_to_be_taken_is_no_work(
    stage: Preprocess, stills: pa.Table, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(stage(stills))  # Starts the decoder process.
    listener.calls.clear()
    stage._config = replace(stage._config, block_bytes=2 * STILL_BYTES)
    for _ in stage(stills):
        time.sleep(1.0)
    (counts,) = listener.calls
    assert counts.fetch_s + counts.decode_s + counts.resize_s < 1.0


@pytest.mark.parametrize("decoders", [1, 2])
def test_as_many_calls_decode_at_once_as_there_are_decoders(
    stills: pa.Table, monkeypatch: pytest.MonkeyPatch, decoders: int
) -> None:
    config = replace(preprocess_config(OPTIONS), decoders=decoders)
    with closing(Preprocess(config)) as stage, ThreadPoolExecutor(4) as callers:
        expected = whole(stage(stills))
        patches, at_work, most = stage._processors.images.patches, [0], [0]
        lock = threading.Lock()

        def look(*arguments: Any, **options: Any) -> Any:
            with lock:
                at_work[0] += 1
                most[0] = max(most[0], at_work[0])
            time.sleep(0.02)
            with lock:
                at_work[0] -= 1
            return patches(*arguments, **options)

        monkeypatch.setattr(stage._processors.images, "patches", look)
        for found in callers.map(lambda block: whole(stage(block)), [stills] * 4):
            assert found.equals(expected)
    assert most == [decoders]
