"""What people see of a run while it goes on."""

from __future__ import annotations

import errno
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

from pipeline import progress_line
from pipeline.progress import Counts
from pipeline.progress_line import ProgressLine
from tests.support.progress import workers

FIRST = Counts(read=1024, items=64, preprocessed=128)
LATER = Counts(
    read=2048,
    shards_read=1,
    read_s=0.8,
    items=1472,
    errors=Counter(corrupt=2),
    tokens=73_900,
    capacity=80_000,
    encode_s=6.1,
    preprocessed=1536,
    fetch_s=0.1,
    decode_s=5.6,
    resize_s=4.0,
    cpu_s=3.9,
    committed=1024,
    commits=4,
    commit_s=0.6,
)
ESCAPES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def line() -> ProgressLine:
    nobody: Any = None
    return ProgressLine(nobody, 4504, workers=workers(), watch=lambda counts: None)


def shown(line: ProgressLine, width: int) -> list[str]:
    """What a terminal shows of it, without colours."""
    console = Console(force_terminal=True, width=width, record=True)
    with console.capture() as found:
        console.print(line.view(width))
    return [row.rstrip() for row in ESCAPES.sub("", found.get()).splitlines()]


@dataclass
class Unwritable:
    """A log or a terminal that takes nothing."""

    error: Exception
    terminal: bool
    encoding: str = "utf-8"

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_the_run_is_watched_though_nothing_can_be_shown(
    error: Exception, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_line, "_LIVE_S", 0.001)
    monkeypatch.setattr(progress_line, "_LOGGED_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Unwritable(error, terminal))
    nobody: Any = None
    looks = threading.Semaphore(0)
    line = ProgressLine(nobody, 4504, workers=workers(), watch=lambda counts: looks.release())
    monkeypatch.setattr(line, "refresh", lambda: None)
    with line:
        assert all(looks.acquire(timeout=10) for _ in range(3))


def test_a_log_has_all_of_it_in_a_line(line: ProgressLine) -> None:
    assert line.text() == "0 of 4,504 items  starting 1 preprocess and 1 CPU encoder actors"
    line.pace.add(100.0, FIRST)
    assert line.text() == "64 of 4,504 items  0 errors"
    line.pace.add(110.0, LATER)
    assert line.text() == (
        "1,472 of 4,504 items  140.8 items/s  7,390 tokens/s  2 errors  0:22 left  "
        "preprocess 97% busy, encode 61%, queue 64, fill 92%"
    )


def test_a_terminal_has_a_bar_and_a_line_a_stage(line: ProgressLine) -> None:
    line.pace.add(100.0, FIRST)
    line.pace.add(110.0, LATER)
    bar, *stages = shown(line, 100)
    assert re.fullmatch(
        r"[━╸╺]{24} 1,472/4,504 140\.8 items/s  7,390 tokens/s  2 errors  0:22 left", bar
    )
    assert stages == [
        "source      8% busy, 102.4 items/s",
        "preprocess  97% busy, 140.8 items/s, queue 512: fetch 1%, decode 56%, resize 40%",
        "encode      61% busy, 140.8 items/s, queue 64, fill 92%",
        "commit      3% busy, 102.4 items/s, queue 448",
    ]


def test_while_actors_start_there_is_only_the_bar(line: ProgressLine) -> None:
    assert shown(line, 100) == [
        f"{'━' * 24} 0/4,504 starting 1 preprocess and 1 CPU encoder actors"
    ]


@pytest.mark.parametrize(("width", "rows"), [(80, 5), (79, 1), (40, 1)])
def test_a_narrow_terminal_has_fewer_lines_and_no_broken_ones(
    line: ProgressLine, width: int, rows: int
) -> None:
    line.pace.add(100.0, FIRST)
    line.pace.add(110.0, LATER)
    found = shown(line, width)
    assert len(found) == rows
    assert max(map(len, found)) <= width


def test_without_a_rate_there_is_no_time_left(line: ProgressLine) -> None:
    line.pace.add(100.0, FIRST)
    line.pace.add(110.0, FIRST)
    assert "0.0 items/s  0 tokens/s  0 errors  ? left" in line.text()


def test_a_block_that_was_redone_does_not_pass_the_end(line: ProgressLine) -> None:
    line.pace.add(100.0, FIRST)
    line.pace.add(110.0, Counts(items=4600))
    assert line.text().startswith("4,504 of 4,504 items  453.6 items/s")
    assert "0:00 left" in line.text()
