"""Real disks that fill up or become read-only in mid-run: a line, exit 1, and a resume."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.verify import verify
from tests.support.crowd import SHARDS

SMALL, LARGE = 400 * 2**10, 64 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = command("mount", "-t", "tmpfs", "-o", f"size={LARGE}", "none", mount)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield mount
    command("umount", "--lazy", mount)


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, check=False)


def remount(disk: Path, options: str) -> None:
    """Waits for the moment in which no file is open for writing."""
    deadline = time.monotonic() + 30
    while (tried := command("mount", "-o", f"remount,{options}", disk)).returncode:
        assert time.monotonic() < deadline, tried.stderr
        time.sleep(0.01)


def assert_told(done, words: str) -> None:
    assert done.code == 1, str(done)
    last = done.err.splitlines()[-1]
    assert last.startswith("patchflow embed: "), last
    assert words in last
    assert "Traceback" not in done.err
    assert done.left_behind == []


@pytest.mark.whole
def test_a_full_disk_fails_in_a_line_and_the_run_goes_on_once_there_is_room(
    disk, crowd, commands, output_at, assert_rows, score
) -> None:
    remount(disk, f"size={SMALL}")
    output = output_at(disk / "output")
    args = (*crowd.args, "--output", output.folder)
    assert_told(commands.run("embed", *args), "No space left on device")
    assert 0 < len(output.commits()) < SHARDS
    assert verify(str(output.folder)).breaches == []
    remount(disk, f"size={LARGE}")
    done = commands.run("embed", *args)
    assert done.code == 0, str(done)
    assert_rows(output.rows(), crowd.embeddings)
    assert output.rows("errors") == crowd.errors
    score.rows(crowd.originals, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
    # What the failed writes had begun is gone.
    assert list(disk.rglob(".partial-*")) == []


@pytest.mark.whole
def test_an_output_made_read_only_half_way_fails_in_a_line_and_the_run_goes_on_after_it(
    disk, crowd, commands, output_at, assert_rows, score
) -> None:
    output = output_at(disk / "output")
    args = (*crowd.args, "--output", output.folder)
    running = commands.job("embed", *args)
    running.wait_until("the first commits", lambda: len(output.commits()) > 2)
    remount(disk, "ro")
    assert_told(running.ended(), "Read-only file system")
    assert 2 < len(output.commits()) < SHARDS
    assert_told(commands.run("embed", *args), "Read-only file system")
    remount(disk, "rw")
    done = commands.run("embed", *args)
    assert done.code == 0, str(done)
    assert_rows(output.rows(), crowd.embeddings)
    score.rows(crowd.originals, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
