"""One object to and from this machine's disk, and storage that fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.doctor.options import Options
from pipeline.doctor.steps import objects
from pipeline.local import LocalStorage


def test_an_object_is_written_and_nothing_of_it_stays(tmp_path: Path) -> None:
    output, clock = objects.output(Options(output=str(tmp_path)))
    assert (output.result, clock.result) == ("ok", "ok")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_output_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = objects.output(Options(output=str(tmp_path / "file" / "below")))
    assert found.result == "broken"
    assert found.figure.startswith(("cannot write: ", "cannot reach: "))


def test_storage_that_lists_late_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "list", lambda self, prefix, links=None: iter(()))
    found = next(objects.output(Options(output=str(tmp_path))))
    assert (found.result, found.figure) == ("broken", "a new object is not listed")


def test_one_object_of_each_input_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    (tmp_path / "empty").mkdir()
    places = (
        tmp_path,
        tmp_path / "a.jpg",
        tmp_path / "*.jpg",
        tmp_path / "none",
        tmp_path / "empty",
    )
    found = list(objects.inputs(Options(inputs=tuple(map(str, places)))))
    assert [finding.result for finding in found] == ["ok", "ok", "ok", "broken", "broken"]
    assert all("read 5 bytes" in finding.figure for finding in found[:3])


@pytest.mark.parametrize(
    ("skew_s", "result"),
    [(0.5, "ok"), (-1.9, "ok"), (3.0, "warning"), (-30.0, "warning"), (301.0, "broken")],
)
def test_clocks_are_compared(skew_s: float, result: str) -> None:
    assert objects.judge_skew(skew_s, "the driver").result == result
    assert ("behind" in objects.judge_skew(-30.0, "the driver").figure) is True


def test_a_disk_of_another_clock_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr(objects.time, "time", lambda: real() + 60)
    _, clock = objects.output(Options(output=str(tmp_path)))
    assert (clock.result, clock.figure) == ("warning", "60.0 s ahead of the output's storage")
