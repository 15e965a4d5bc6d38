"""A local run's workers are forks of one process, and otherwise those that Ray would start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.worker_start import ADDRESS
from pipeline.worker_template import _Template, worker_template
from tests.support.scripts import ROOT, environment, run, running

_ACTORS = """
import json, os, random, time
from pathlib import Path
from signal import SIG_BLOCK, pthread_sigmask
import psutil
from pipeline.cluster import ray_running

class Actor:
    def look(self):
        import ray
        me = psutil.Process()
        return {
            "pid": me.pid,
            "parent": me.parent().cmdline()[1:3],
            "niceness": me.nice(),
            "blocked": [int(signal) for signal in pthread_sigmask(SIG_BLOCK, set())],
            "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
            "group": os.getpgrp(),
            "folder": os.getcwd(),
            "raylet": int(os.environ["RAY_RAYLET_PID"]),
            "numbers": [random.random(), ray.NodeID.from_random().hex()],
            "sockets": sum(c.laddr.endswith("/workers") for c in me.net_connections("unix")),
        }

def started():
    return [process for process in psutil.Process().children(recursive=True)
            if any("worker_start" in part for part in process.cmdline()[:2])]
"""
_LOOK = f"""{_ACTORS}
with ray_running(verbose=False):
    import ray
    actors = [ray.remote(num_cpus=0)(Actor).remote() for _ in range(3)]
    looks = ray.get([actor.look.remote() for actor in actors])
    starts = started()
    adjustment = Path(f"/proc/{{starts[0].pid}}/oom_score_adj").read_text()
    start = {{"oom_score_adj": adjustment, "raylet": starts[0].ppid()}}
    first = psutil.Process(looks[0]["pid"])
    template = first.parent()
    ray.kill(actors[0])
    first.wait(10)
    gone, _ = psutil.wait_procs(starts, 5)
    template.kill()
    late = ray.get(ray.remote(num_cpus=0)(Actor).remote().look.remote())
    pids = ray.get([actor.look.remote() for actor in actors[1:]])
print(json.dumps([looks, start, len(gone), late, [look["pid"] for look in pids]]))
"""
_OPTIONS = f"""{_ACTORS}
with ray_running(verbose=False):
    import ray
    actor = ray.remote(num_cpus=0)(Actor).remote()
    print(json.dumps(ray.get(actor.look.remote(), timeout=60)["parent"]))
"""
_WAIT = f"""{_ACTORS}
with ray_running(verbose=False):
    import ray
    actor = ray.remote(num_cpus=0)(Actor).remote()
    look = ray.get(actor.look.remote())
    print(json.dumps([p.pid for p in psutil.Process().children(recursive=True)]), flush=True)
    time.sleep(60)
"""
_DRAWS = """
from pipeline.worker_template import forks_draw_alike, import_all
import_all()
import ray
print(forks_draw_alike(), ray.NodeID.from_random() and forks_draw_alike())
"""


@pytest.fixture(scope="module")
def found() -> list[Any]:
    """What was seen in a local run."""
    ended = run(_LOOK)
    assert ended.returncode == 0, ended.stderr
    what: list[Any] = json.loads(ended.stdout.splitlines()[-1])
    return what


def test_workers_are_forks_like_those_that_ray_starts(found: list[Any]) -> None:
    looks, start, *_ = found
    for look in looks:
        assert look["parent"] == ["-m", "pipeline.worker_template"]
        assert look["group"] == look["pid"]  # The raylet ends a worker with all of its group.
        assert look["folder"] == str(ROOT)
        assert look["sockets"] == 0
        assert look["blocked"] == [signal.SIGINT]  # Ctrl-C is the driver's to deal with.
        assert start == {name: look[name] for name in start}


def test_each_has_random_numbers_of_its_own(found: list[Any]) -> None:
    looks, *_ = found
    numbers = [number for look in looks for number in look["numbers"]]
    assert len(set(numbers)) == len(numbers) == 6


def test_what_started_a_worker_ends_with_it(found: list[Any]) -> None:
    _, _, ended, *_ = found
    assert ended == 1


def test_without_the_template_workers_live_on_and_ray_starts_others(found: list[Any]) -> None:
    looks, _, _, late, pids = found
    assert pids == [look["pid"] for look in looks[1:]]
    assert late["parent"] != ["-m", "pipeline.worker_template"]
    assert late["niceness"] == looks[0]["niceness"]


def test_a_worker_of_another_job_is_not_forked_and_leaves_no_descriptor(tmp_path: Path) -> None:
    this = psutil.Process()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "workers"))
        listener.listen()
        asked = this.num_fds()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(tmp_path / "workers"))
            request = json.dumps({"environment": {"RAY_JOB_ID": "02000000"}}).encode()
            socket.send_fds(client, [request], [1, 1, 2])
            template: Any = SimpleNamespace(_listener=listener)
            _Template._accept(template)
            assert client.recv(1) == b""
        assert this.num_fds() == asked


def test_a_worker_that_python_has_options_for_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONNOUSERSITE", "1")  # Ray then starts workers with `-s`.
    ended = run(_OPTIONS)
    assert ended.returncode == 0, ended.stderr
    assert "pipeline.worker_template" not in json.loads(ended.stdout.splitlines()[-1])


def test_no_fork_and_no_folder_outlives_a_killed_driver() -> None:
    with tempfile.TemporaryDirectory() as folder:  # A short path: sockets are in it.
        driver = subprocess.Popen(
            [sys.executable, "-c", _WAIT],
            cwd=ROOT,
            env=environment() | {"TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with driver:
            assert driver.stdout is not None
            below = json.loads(driver.stdout.readline())
            assert len(list(Path(folder).glob("patchflow-*"))) == 1
            driver.send_signal(signal.SIGKILL)
        assert len(below) > 5
        psutil.wait_procs([psutil.Process(pid) for pid in below if running(pid)], 10)
        assert not any(map(running, below))
        assert not list(Path(folder).glob("patchflow-*"))


def test_without_room_for_its_socket_there_is_no_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with worker_template():
        assert ADDRESS not in os.environ
    assert not list(folder.iterdir())


def test_a_template_that_has_drawn_from_rays_random_numbers_is_found_out() -> None:
    ended = run(_DRAWS)
    assert (ended.returncode, ended.stdout) == (0, "False True\n"), ended.stderr
