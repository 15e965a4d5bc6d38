"""Items that fail by the hundred: a shard of nothing else, and more than is allowed."""

from __future__ import annotations

import sys
from collections import Counter
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


@pytest.mark.whole
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


@pytest.mark.parametrize(
    ("rate", "code"), [(1.0, 0), pytest.param(0.9, 3, marks=pytest.mark.whole)]
)
def test_nothing_but_broken_photos_and_clips_end_in_a_summary_by_code(
    rate: float, code: int, broken, commands, output_at, tmp_path, score
) -> None:
    folder, output = tmp_path / "broken", output_at(tmp_path / "output")
    folder.mkdir()
    for name, (data, _) in broken.items():
        (folder / name).write_bytes(data)
    args = ("--output", output.folder, "--max-error-rate", rate, "--preprocess-actors", 1)
    done = commands.run("embed", folder, *args)
    assert (done.code, done.left_behind) == (code, []), str(done)
    rows = output.rows("errors")
    assert {Path(row["uri"]).name: row["error_code"] for row in rows} == {
        name: error for name, (_, error) in broken.items()
    }
    counts = Counter(error for _, error in broken.values())
    shown = counts if code == 0 else dict(counts.most_common(3))
    summary = done.out if code == 0 else done.err.splitlines()[-1]
    assert all(f"{error} {count}" in summary for error, count in shown.items()), str(done)
    score.rows((str(folder / name) for name in broken), output.terminal())
    score.objects(verify(str(output.folder)).breaches)
