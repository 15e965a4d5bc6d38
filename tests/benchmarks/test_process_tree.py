"""What the benchmarks count: processes that have ended, were left behind, or vanish unwaited."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.process_tree import run

BURN = "import time\nwhile time.process_time() < {}: pass\n"


def python(*lines: str) -> list[str]:
    return [sys.executable, "-S", "-c", "\n".join(lines)]


def test_a_child_that_was_waited_for_counts_once() -> None:
    burn = python(BURN.format(0.5))
    usage = run(python("import subprocess", f"subprocess.run({burn!r})"))
    assert 0.5 <= usage.cpu_s < 1.0


def test_a_child_that_outlives_the_command_counts_once() -> None:
    burn = python(BURN.format(0.5))
    usage = run(python("import subprocess", f"subprocess.Popen({burn!r})"))
    assert 0.5 <= usage.cpu_s < 1.0
    assert usage.wall_s > 0


def test_a_child_that_nobody_waits_for_counts_as_it_was_last_seen() -> None:
    burn = python(BURN.format(0.5), "time.sleep(1)")
    usage = run(
        python(
            "import signal, subprocess",
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
            # It waits until it has no child any more, and learns nothing of the one that it had.
            f"subprocess.Popen({burn!r}).wait()",
        )
    )
    assert 0.5 <= usage.cpu_s < 1.0


def test_memory_is_that_of_all_processes_together() -> None:
    hold = python("import time", "held = b'1' * 100_000_000", "time.sleep(2.5)")
    usage = run(python("import subprocess", f"subprocess.run({hold!r})"))
    assert 100e6 < usage.peak_bytes < 150e6


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run(python("raise SystemExit(3)"))
