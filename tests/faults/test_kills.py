"""`kill -9`, Ctrl-C and SIGTERM in the middle of real runs, and the same command after them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from pipeline.verify import verify
from tests.support.clips import real_clip
from tests.support.commands import title_of
from tests.support.crowd import SHARDS

PREPROCESS = "ray::MapWorker(MapBatches(Preprocess"
ENCODE = "ray::MapWorker(MapBatches(Encode"
COMMIT = "ray::commit_blocks"
DECODER = "processors.sandbox.template"


@dataclass(frozen=True)
class Stop:
    """One run that was stopped, and the output's committed shards then."""

    moment: str
    done: Any
    processes: int
    commits: set[str]
    decided: set[str]
    """Shards that are not committed, but will be by the next run before it starts anything."""
    objects: dict[str, Any]
    breaches: list[str]


@dataclass(frozen=True)
class Story:
    """Runs of one command on one output: stopped ones, and the one that came to its end."""

    output: Any
    stops: dict[str, Stop]
    last: Any


@pytest.fixture(scope="module")
def story(crowd, commands, output_at, tmp_path_factory) -> Story:
    """The same command again and again, stopped ever later, then left alone."""
    output = output_at(tmp_path_factory.mktemp("killed") / "output")
    frozen = output.folder / "_patchflow" / "manifest" / "g000000.json"
    stops: dict[str, Stop] = {}

    def stop(moment: str, when: Callable[[Any], Any], how: Callable[[Any], Any]) -> None:
        command = commands.job("embed", *crowd.args, "--output", output.folder)
        command.wait_until(moment, lambda: when(command))
        processes = len(command.family())
        done = how(command)
        commits = output.commits()
        intents = output.folder / "_patchflow" / "intents"
        decided = {path.stem for path in intents.glob("g*")} - commits
        # A kill may have left an intent beside its marker.
        found = output.objects(commits).items()
        objects = {name: known for name, known in found if "/intents/" not in name}
        breaches = verify(str(output.folder)).breaches
        stops[moment] = Stop(moment, done, processes, commits, decided, objects, breaches)

    def more_than(count: int) -> Callable[[Any], bool]:
        return lambda command: len(output.commits()) > count

    def kill(command: Any) -> Any:
        return command.kill()

    stop("planned", lambda command: frozen.exists(), kill)
    stop("actors up", lambda command: command.family(PREPROCESS), kill)
    stop("first commits", more_than(1), kill)
    for moment, number in (("SIGTERM", signal.SIGTERM), ("Ctrl-C", signal.SIGINT)):
        before = len(output.commits())
        stop(
            moment,
            # Shards that were decided are committed at the very start: that is too early.
            lambda command, b=before: command.family(ENCODE) and len(output.commits()) > b,
            lambda command, n=number: command.interrupt(n),
        )
    stop("near the end", more_than(SHARDS - 6), kill)
    last = commands.run("embed", *crowd.args, "--output", output.folder)
    assert last.code == 0, str(last)
    return Story(output, stops, last)


KILLS = ["planned", "actors up", "first commits", "near the end"]


@pytest.mark.whole
@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_came_in_mid_run(moment: str, story) -> None:
    stop = story.stops[moment]
    assert stop.done.code == -signal.SIGKILL, str(stop.done)
    assert stop.processes >= (1 if moment == "planned" else 5)


@pytest.mark.whole
def test_kills_came_before_amid_and_after_commits(story) -> None:
    counts = [len(stop.commits) for stop in story.stops.values()]
    assert counts[:2] == [0, 0]
    assert counts[2:] == sorted(set(counts[2:]))
    assert counts[2] > 0
    assert counts[-1] < SHARDS


@pytest.mark.whole
def test_at_no_moment_is_anything_broken(story) -> None:
    for stop in story.stops.values():
        assert stop.breaches == [], stop.moment


@pytest.mark.whole
def test_what_was_committed_is_never_touched_again(story) -> None:
    after = story.output.objects()
    for stop in story.stops.values():
        # Embeddings, errors and the marker of each.
        assert len(stop.objects) == 3 * len(stop.commits)
        assert {name: after.get(name) for name in stop.objects} == stop.objects, stop.moment


@pytest.mark.whole
def test_the_resumed_output_equals_an_undisturbed_one(story, crowd, assert_rows) -> None:
    assert_rows(story.output.rows(), crowd.embeddings)
    assert story.output.rows("errors") == crowd.errors


@pytest.mark.whole
def test_the_resumed_output_verifies_with_every_item_once(story, crowd, commands, score) -> None:
    score.kills += len(KILLS)
    score.rows(crowd.originals, story.output.terminal())
    audit = commands.run("verify", "--output", story.output.folder)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    assert audit.out.startswith(f"{SHARDS} of {SHARDS} shards committed: ")


@pytest.mark.whole
def test_a_resume_embeds_only_what_was_left(story) -> None:
    stop = story.stops["near the end"]
    left = SHARDS - len(stop.commits | stop.decided)
    assert f"{left} committed" in story.last.out


@pytest.mark.parametrize("moment", ["SIGTERM", "Ctrl-C"])
def test_an_interrupted_run_says_how_to_go_on_and_leaves_nothing_running(
    moment: str, story
) -> None:
    stop = story.stops[moment]
    assert stop.done.code == 1, str(stop.done)
    assert "Traceback" not in stop.done.err, str(stop.done)
    told = [line for line in stop.done.err.splitlines() if line.startswith("patchflow embed: ")]
    assert told == stop.done.err.splitlines()[-1:]
    assert "resumes" in told[0]
    assert stop.processes >= 5
    assert stop.done.left_behind == []
    assert stop.done.seconds < 10


@pytest.mark.whole
def test_a_run_survives_the_death_of_an_encoder_and_a_preprocess_actor(
    crowd, commands, output_at, assert_rows, tmp_path, score
) -> None:
    output = output_at(tmp_path / "output")
    command = commands.job("embed", *crowd.args, "--output", output.folder)
    command.wait_until("a shard is committed", output.commits)
    victims = {title: command.family(title) for title in (ENCODE, PREPROCESS)}
    for title, actors in victims.items():
        assert actors, f"no {title} is running"
        for actor in actors:
            actor.kill()
    assert len(output.commits()) < SHARDS
    for title, actors in victims.items():
        command.wait_until(
            f"another {title} is running", lambda t=title, a=actors: set(command.family(t)) - {*a}
        )
    done = command.ended()
    assert done.code == 0, str(done)
    assert done.left_behind == []
    assert not any(psutil.pid_exists(a.pid) and a.is_running() for v in victims.values() for a in v)
    assert_rows(output.rows(), crowd.embeddings)
    assert output.rows("errors") == crowd.errors
    score.kills += 2
    score.rows(crowd.originals, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
    assert len(output.commits()) == SHARDS


@pytest.mark.whole
def test_a_run_survives_the_death_of_its_commit_tasks(
    crowd, commands, output_at, assert_rows, tmp_path, score
) -> None:
    output = output_at(tmp_path / "output")
    command = commands.job("embed", *crowd.args, "--output", output.folder)
    command.wait_until("a shard is committed", output.commits)
    for _ in range(3):
        command.wait_until("a commit is killed", lambda: kill_a_commit(command))
        score.kills += 1
    done = command.ended()
    assert done.code == 0, str(done)
    assert_rows(output.rows(), crowd.embeddings)
    assert output.rows("errors") == crowd.errors
    score.rows(crowd.originals, output.terminal())
    score.objects(verify(str(output.folder)).breaches)


def test_a_driver_that_is_killed_leaves_no_decoder_process_behind(
    commands, output_at, tmp_path, score
) -> None:
    for number in range(8):
        (tmp_path / f"{number}.mp4").symlink_to(real_clip("bigbuckbunny.mp4"))
    output = output_at(tmp_path / "output")
    command = commands.job("embed", tmp_path, "--output", output.folder, "--follow-links")
    command.wait_until("a clip is being decoded", lambda: decoding(command))
    decoders = {process.pid for process in command.family() if DECODER in title_of(process)}
    command.process.kill()
    done = command.ended()
    assert done.code == -signal.SIGKILL
    # Ray's own may take longer.
    left = {int(line.split()[0]) for line in done.left_behind}
    assert len(decoders) >= 2
    assert decoders & left == set()
    score.kills += 1
    score.objects(verify(str(output.folder)).breaches)


def decoding(command: Any) -> list[psutil.Process]:
    """The decoder processes that have been at work for a while."""
    found = []
    for process in command.family():
        with contextlib.suppress(psutil.Error):
            is_child = DECODER in title_of(process.parent()) and DECODER in title_of(process)
            if is_child and process.cpu_times().user > 0.1:
                found.append(process)
    return found


def kill_a_commit(command: Any) -> bool:
    """Kills a worker while it commits, which takes it milliseconds: its title says when."""
    workers = command.family("ray::")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for worker in workers:
            if title_of(worker).startswith(COMMIT):
                worker.kill()
                return True
    return False
