"""A local run: what Ray starts for it, and that Ray Data works without the rest."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from pipeline import one_machine
from pipeline.one_machine import few_actors
from tests.support.scripts import run

_LOCAL = """
import json
from pipeline.cluster import ray_running

class Double:
    def __call__(self, batch):
        return {"id": 2 * batch["id"]}

with ray_running(verbose=False):
    import psutil, ray
    pool = ray.data.ActorPoolStrategy(size=1)
    rows = ray.data.range(8).map_batches(Double, compute=pool, batch_size=2).take_all()
    actors = [actor["ActorClassName"] for actor in ray._private.state.actors().values()]
    processes = psutil.Process().children(recursive=True)
    commands = [" ".join(p.cmdline()) for p in processes]
    agents = [p for p in processes if "idle_agent.py" in " ".join(p.cmdline()[:4])]
    next(p for p in processes if p.name() == "raylet").kill()  # As a system out of memory does.
    gone, _ = psutil.wait_procs(agents, 10)
print(json.dumps([sorted(row["id"] for row in rows), actors, commands, len(gone)]))
"""


class LocalRun(NamedTuple):
    """What came of it."""

    rows: list[int]
    actors: list[str]
    commands: list[str]
    agents_ended: int
    """Within ten seconds of the raylet's end by SIGKILL."""


@pytest.fixture(scope="module")
def local_run() -> LocalRun:
    """A small pipeline on a Ray of its own."""
    ended = run(_LOCAL)
    assert ended.returncode == 0, ended.stderr
    return LocalRun(*json.loads(ended.stdout.splitlines()[-1]))


def test_a_local_run_starts_no_actors_but_the_pipeline_s(local_run: LocalRun) -> None:
    assert local_run.rows == list(range(0, 16, 2))
    assert [name.partition("(")[0] for name in local_run.actors] == ["MapWorker"]


def test_a_local_run_starts_no_dashboard_autoscaler_or_log_monitor(local_run: LocalRun) -> None:
    assert any("raylet" in command for command in local_run.commands)
    for useless in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py"):
        assert not [command for command in local_run.commands if useless in command]


def test_its_agents_are_idle_ones_that_end_with_the_raylet(local_run: LocalRun) -> None:
    for agent in ("dashboard/agent.py", "runtime_env/agent/main.py"):
        (command,) = (c for c in local_run.commands if agent in c and "raylet/raylet" not in c)
        assert "idle_agent.py" in command
    assert local_run.agents_ended == 2


def test_ray_data_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data._internal import stats

    before = stats.get_or_create_stats_actor
    with few_actors():
        assert stats.get_or_create_stats_actor is not before
    assert stats.get_or_create_stats_actor is before
    monkeypatch.setattr(one_machine, "_KNOWN_RAY", "2.59.0")
    with few_actors():
        assert stats.get_or_create_stats_actor is before


_TERMINATED = """
import os, signal, sys, threading, time
import psutil
from pipeline.cluster import ray_running

def terminate(number, frame):
    raise KeyboardInterrupt

def send():
    while len(me.children()) < 2:  # The workers' template is one, Ray's first process another.
        time.sleep(0.001)
    time.sleep(DELAY)
    os.kill(os.getpid(), signal.SIGTERM)

me = psutil.Process()
signal.signal(signal.SIGTERM, terminate)
threading.Thread(target=send).start()
try:
    with ray_running(verbose=False):
        time.sleep(60)
except KeyboardInterrupt:
    _, left = psutil.wait_procs(me.children(recursive=True), 10)
    print("interrupted", sys.modules["ray"].is_initialized(), left)
"""


@pytest.mark.parametrize(
    "delay",
    [0.3, pytest.param(0.0, marks=pytest.mark.whole), pytest.param(0.6, marks=pytest.mark.whole)],
)
def test_a_signal_waits_until_ray_has_started(delay: float) -> None:
    ended = run(_TERMINATED.replace("DELAY", str(delay)))
    assert (ended.returncode, ended.stdout) == (0, "interrupted False []\n"), ended.stderr
