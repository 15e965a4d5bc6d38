"""Items that fail by the hundred: a shard of nothing else, and more than is allowed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.verify import verify

SHARD_ROWS = 40
# Ray starts the commands of its jobs with Ctrl-C's signal blocked.
AS_A_JOB = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def mostly_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards' worth of files: a shard of good ones, nine of bad ones, two of good ones."""
    folder = tmp_path_factory.mktemp("mostly-bad")
    for number in range(12 * SHARD_ROWS):
        path = folder / f"{number:04d}.png"
        Image.new("RGB", (56, 56), (number % 256, 90, 30)).save(path)
        if 1 <= number // SHARD_ROWS < 10:
            path.write_bytes(path.read_bytes()[:60] if number % 3 else b"no photo at all")
    return folder


def test_a_shard_of_nothing_but_bad_items_is_committed_as_such(
    mostly_bad, commands, output_at, tmp_path, score
) -> None:
    output = output_at(tmp_path / "output")
    bad = sorted(map(str, mostly_bad.iterdir()))[SHARD_ROWS : 2 * SHARD_ROWS]
    args = (*bad, "--output", output.folder, "--shard-rows", SHARD_ROWS)
    first = commands.run("embed", *args)
    assert first.code == 0, str(first)
    assert (output.rows(), len(output.rows("errors"))) == ([], SHARD_ROWS)
    score.rows(bad, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
    objects = output.objects()
    assert "nothing to do" in commands.run("embed", *args).out
    assert output.objects() == objects


def test_past_the_error_rate_a_run_stops_early_with_the_top_codes_and_can_be_resumed(
    mostly_bad, commands, output_at, tmp_path, score
) -> None:
    output = output_at(tmp_path / "output")
    args = (mostly_bad, "--output", output.folder, "--shard-rows", SHARD_ROWS)
    stopped = commands.start(
        *(sys.executable, "-c", AS_A_JOB, sys.executable, "-m", "jobs.embed"),
        *(*args, "--max-error-rate", 0.5),
    ).ended()
    assert stopped.code == 3, str(stopped)
    line = stopped.err.splitlines()[-1]
    assert "items failed (truncated " in line and "unsupported_format " in line, line
    assert "more than --max-error-rate 0.5" in line
    assert "Traceback" not in stopped.err
    assert stopped.left_behind == []
    assert len(output.commits()) < 12
    assert verify(str(output.folder)).breaches == []
    done = commands.run("embed", *args)
    assert done.code == 0, str(done)
    score.rows(map(str, mostly_bad.iterdir()), output.terminal())
    score.objects(verify(str(output.folder)).breaches)
    assert len(output.rows("errors")) == 9 * SHARD_ROWS
