"""Rows on their way into shards: each folder's in their order, and a bounded memory for all."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.freeze import ShardWriter
from pipeline.waiting import Waiting

folders = st.sampled_from("abc")


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), folders, st.integers(1, 5)), max_size=30),
    most=st.sampled_from([0, 5_000, 20_000, 2**28]),
)
def test_a_folder_gives_back_its_rows_in_their_order(
    steps: list[tuple[bool, str, int]], most: int
) -> None:
    expected: defaultdict[str, list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.waiting._MOST_BYTES", most)
        waiting = Waiting(Path(place))
        for step, (is_taken, folder, count) in enumerate(steps):
            if is_taken and expected[folder]:
                assert waiting.take(folder)["n"].to_pylist() == expected.pop(folder)
            else:
                rows = [10 * step + n for n in range(count)]
                waiting.add(folder, pa.table({"n": rows, "text": [str(n) for n in rows]}))
                expected[folder] += rows
            there = {name: len(rows) for name, rows in expected.items() if rows}
            assert waiting.rows == there
        for folder in there if steps else ():
            assert waiting.take(folder)["n"].to_pylist() == expected[folder]


def test_rows_of_many_folders_wait_in_a_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 MiB no shard is full, and 1 MiB may wait in memory."""
    monkeypatch.setattr("pipeline.waiting._MOST_BYTES", 2**20, raising=False)
    writer = ShardWriter(0, 4096, ("kind",), tmp_path)
    kinds = [str(number) for number in range(64)]
    empty, text = pa.nulls(64, pa.string()), pa.array(["x" * 2**12] * 64)
    columns = {"item_id": text, "uri": empty, "version": empty, "size_bytes": empty.cast("int64")}
    rows = pa.table({**columns, "media_type": empty, "kind": kinds})
    before, most = pa.total_allocated_bytes(), 0
    for _ in range(64):
        writer.add(rows)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 3 * 2**20
    writer.close()
    assert (writer.rows, writer.shards) == (64 * 64, 64)
