"""Which generation is an item's newest, and requests that run ahead within a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.ahead import _REQUESTS, ahead
from pipeline.known import PlanReport
from pipeline.location import item_id
from pipeline.manifest import Generation, generations
from pipeline.manifest import read_columns as read
from pipeline.states import newest_of, scratch_newest

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]

A, B, C = (item_id(name) for name in "abc")


def test_the_newest_generation_of_an_item_is_the_one_that_came_first() -> None:
    with scratch_newest() as newest:
        assert newest.add(2, "two", [A, B]) == 2
        assert newest.add(1, "one", [A, C]) == 2
        assert newest.add(0, "zero", [A, B, C]) == 3
        assert newest.live == {"two": 2, "one": 1}
        rows = pa.table({"item_id": [C, B, A], "row": [0, 1, 2]})
        found = {n: newest.current(n, rows)["row"].to_pylist() for n in range(3)}
        assert found == {0: [], 1: [0], 2: [1, 2]}


def test_an_item_twice_in_a_generation_counts_once() -> None:
    with scratch_newest() as newest:
        assert newest.add(1, "one", [A, A, B]) == 2
        assert newest.add(1, "more", [B, C]) == 1
        # Superseded, and twice all the same.
        assert newest.add(0, "zero", [A, A]) == 1
        assert newest.live == {"one": 2, "more": 1}


@pytest.mark.parametrize("rows_a_batch", [1, 2, 5, 100])
def test_shards_are_told_apart_however_a_generation_is_read(
    tmp_path: Path,
    write_manifest: WriteManifest,
    freeze: Freeze,
    monkeypatch: pytest.MonkeyPatch,
    rows_a_batch: int,
) -> None:
    output = str(tmp_path / "out")
    names = [f"/{n}.jpg" for n in range(7)]
    freeze(output, write_manifest({"uri": names, "version": ["1"] * 7}), shard_rows=3)
    freeze(output, write_manifest({"uri": names[2:5], "version": ["2"] * 3}, "changed"))

    def batches(output: str, generation: Generation, columns: list[str]) -> Iterator[pa.Table]:
        for table in read(output, generation, columns):
            for start in range(0, table.num_rows, rows_a_batch):
                yield table.slice(start, rows_a_batch)

    monkeypatch.setattr("pipeline.states.read_columns", batches)
    with newest_of(output, generations(output)) as newest:
        assert newest is not None
        assert newest.live == {
            "g000001-00000000": 3,
            "g000000-00000000": 2,
            "g000000-00000001": 1,
            "g000000-00000002": 1,
        }


def test_one_generation_needs_no_look_up(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze
) -> None:
    output = str(tmp_path / "out")
    freeze(output, write_manifest({"uri": ["/a.jpg"]}))
    with newest_of(output, generations(output)) as newest:
        assert newest is None


def test_requests_run_ahead_in_order_and_within_a_bound() -> None:
    lock, started, most = threading.Lock(), 0, 0

    def request(number: int) -> int:
        nonlocal started
        with lock:
            started += 1
        time.sleep(0.01 if number % 3 else 0)
        return number

    for taken, number in enumerate(ahead(request, range(200))):
        assert number == taken
        most = max(most, started - taken)
    assert 1 < most <= _REQUESTS + 1


def test_a_request_that_fails_ends_the_stream_in_its_place() -> None:
    found = ahead(lambda number: 6 // number, [3, 2, 0, 1])
    assert [next(found), next(found)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(found)
