"""The files below a folder: in order, and in little memory however many there are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from pipeline.walk import walk


def test_names_are_in_one_order_in_memory_and_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b", "a", "a\n", "é", "\n\n", "\udcff", "ab", "\ud7ff", "😀", "z" * 255]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".hidden").touch()
    for most in (1, 2, 3, len(names), len(names) + 1):
        monkeypatch.setattr("pipeline.walk._MOST_NAMES", most)
        assert [Path(path).name for path, _ in walk(str(tmp_path))] == sorted(names)


def test_a_folder_of_many_files_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.walk._MOST_NAMES", 250)
    count = 5_000
    for number in range(count):
        (tmp_path / f"{number:06d}.jpg").touch()
    tracemalloc.start()
    try:
        assert sum(1 for _ in walk(str(tmp_path))) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * count
