"""Two drivers on one output; drivers and workers that sleep through another one's run."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import Any

import psutil
import pytest

from pipeline.verify import verify
from tests.support.crowd import SHARDS

WORKERS = "ray::"
# Longer than the engine waits for a machine that does not answer.
ASLEEP_S = 60.0


@pytest.fixture
def output(tmp_path, output_at) -> Any:
    return output_at(tmp_path / "output")


@pytest.fixture
def check(crowd, output, assert_rows, score) -> Any:
    """Holds the output against an undisturbed one."""

    def check() -> None:
        assert_rows(output.rows(), crowd.embeddings)
        assert output.rows("errors") == crowd.errors
        score.rows(crowd.originals, output.terminal())
        score.objects(verify(str(output.folder)).breaches)

    return check


def committed(done: Any) -> tuple[int, int]:
    """What a summary says: shards, and those of them that another run committed."""
    shards = re.search(r"([\d,]+) committed", done.out)
    others = re.search(r"of them +([\d,]+) by another run", done.out)
    return int(shards[1]) if shards else 0, int(others[1]) if others else 0


@pytest.mark.whole
def test_of_two_drivers_at_once_every_shard_is_one_s_and_the_other_says_so(
    crowd, commands, output, check
) -> None:
    args = (*crowd.args, "--output", output.folder)
    both = [commands.job("embed", *args) for _ in range(2)]
    done = [command.ended() for command in both]
    assert [d.code for d in done] == [0, 0], [str(d) for d in done]
    check()
    counts = [committed(d) for d in done]
    # What the one lost, the other won; what was done before it began, it did not even try.
    assert sum(shards - others for shards, others in counts) == SHARDS
    assert sum(others for _, others in counts) > 0
    for d, (_, others) in zip(done, counts, strict=True):
        assert ("give each driver its own --shards" in d.out) == (others > 0)
    assert "nothing to do" in commands.run("embed", *args).out


@pytest.mark.whole
def test_two_drivers_on_disjoint_slices_share_the_work(crowd, commands, output, check) -> None:
    planned = commands.run("plan", *crowd.args[:3], "--output", output.folder)
    assert planned.code == 0, str(planned)
    args = (*crowd.args, "--output", output.folder)
    half = SHARDS // 2
    both = [commands.job("embed", *args, "--shards", s) for s in (f":{half}", f"{half}:")]
    done = [command.ended() for command in both]
    assert [d.code for d in done] == [0, 0], [str(d) for d in done]
    assert [committed(d) for d in done] == [(half, 0), (SHARDS - half, 0)]
    check()


@pytest.mark.whole
@pytest.mark.parametrize("asleep", ["its driver", "all of it"])
def test_a_run_that_slept_through_another_one_harms_nothing_and_says_what_happened(
    asleep: str, crowd, commands, output, check
) -> None:
    args = (*crowd.args, "--output", output.folder)
    sleeper = commands.job("embed", *args)
    sleeper.wait_until("the first commits", lambda: len(output.commits()) > 1)
    family = [p for p in sleeper.family() if asleep == "all of it" or p.pid == sleeper.process.pid]
    send(family, signal.SIGSTOP)
    began = time.monotonic()
    other = commands.run("embed", *args)
    assert other.code == 0, str(other)
    finished = output.objects()
    time.sleep(max(0.0, ASLEEP_S - (time.monotonic() - began)))
    send(family, signal.SIGCONT)
    woken = sleeper.ended()
    assert woken.left_behind == []
    assert "Traceback" not in woken.err
    # Asleep as a whole, it may find its own cluster gone: that costs nothing.
    assert woken.code in ((0,) if asleep == "its driver" else (0, 1)), str(woken)
    if woken.code == 0:
        assert committed(woken)[0] > 0
    else:
        assert woken.err.splitlines()[-1].startswith("patchflow embed: ")
    assert same_content(output.objects()) == same_content(finished)
    check()


@pytest.mark.whole
def test_workers_that_wake_up_after_another_run_has_finished_change_nothing(
    crowd, commands, output, check, score
) -> None:
    args = (*crowd.args, "--output", output.folder)
    first = commands.job("embed", *args)
    first.wait_until("the first commits", lambda: len(output.commits()) > 1)
    zombies = first.family(WORKERS)
    assert zombies
    send(zombies, signal.SIGSTOP)
    send([process for process in first.family() if process not in zombies], signal.SIGKILL)
    score.kills += 1
    assert commands.run("embed", *args).code == 0
    finished = output.objects()
    send(zombies, signal.SIGCONT)
    assert first.ended().left_behind == []
    assert same_content(output.objects()) == same_content(finished)
    check()
    assert "nothing to do" in commands.run("embed", *args).out


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """To those that are still there: short tasks end, and dead ones take others along."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def same_content(objects: dict[str, tuple[int, int, str]]) -> dict[str, str]:
    """Contents by name. A late writer may write an object anew, but only in the decided bytes."""
    return {n: content for n, (_, _, content) in objects.items() if "/intents/" not in n}
