"""Runs on GPUs that Ray schedules by and nobody has: real Ray, encoders that compute on the CPU."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.verify import verify
from tests.support.commands import Command, Commands, Done
from tests.support.outputs import MAX_PIXELS, Output

SCRIPT = Path(__file__).with_name("fake_gpu_run.py")
RAY = Path(sys.executable).with_name("ray")
ENCODER = "ray::MapWorker(MapBatches(Encode))"
# Ray takes 127.0.0.1 for another name of the machine's public address.
HEAD, NODE, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
START = (RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory", 200 * 2**20)
SMALL = ("--max-pixels", MAX_PIXELS, "--preprocess-actors", 1)


@dataclass(frozen=True)
class Cluster:
    """A head without a GPU, and one node with two."""

    env: dict[str, str]
    """Of a driver on the head."""
    dashboard: str
    head: Command
    node: Command


def start_node(commands: Commands, port: int, env: dict[str, str], host: str, gpus: int) -> Command:
    """Starts a node of the cluster that `env` names; its agent listens on `port`.

    It has a folder of its own, as another machine has: agents that share one remove files of each
    other's.
    """
    own = Path(commands.env["RAY_TMPDIR"], host)
    own.mkdir(exist_ok=True)
    return commands.start(
        *(*START, "--address", env["RAY_ADDRESS"], "--num-cpus", 1, "--num-gpus", gpus),
        *("--node-ip-address", host, "--dashboard-agent-listen-port", port),
        *("--temp-dir", own),
        env=env | {"PATCHFLOW_TEST_GPUS": f"{gpus}:7.5"},
    )


@pytest.fixture(scope="module")
def cluster(commands: Commands, free_ports: Callable[[int], list[int]]) -> Iterator[Cluster]:
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    path = {"PATH": f"{Path(sys.executable).parent}:{commands.env['PATH']}"}
    gcs, dashboard, *agents = free_ports(4)
    head = commands.start(
        *(*START, "--head", "--num-cpus", 2, "--num-gpus", 0, "--node-ip-address", HEAD),
        *("--port", gcs, "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard),
        *("--dashboard-agent-listen-port", agents[0]),
        env=auth | path,
    )
    address = f"http://127.0.0.1:{dashboard}"

    def answers() -> bool:
        listing = commands.start(RAY, "job", "list", "--address", address, env=auth)
        return listing.ended().code == 0

    head.wait_until("the head is up", lambda: "Ray runtime started" in head.output())
    env = auth | path | {"RAY_ADDRESS": f"{HEAD}:{gcs}"}
    node = start_node(commands, agents[1], env, NODE, gpus=2)
    head.wait_until("the head takes jobs", answers)
    node.wait_until("the node is up", lambda: "Ray runtime started" in node.output())
    yield Cluster(env, address, head, node)
    node.kill()
    head.kill()


@pytest.fixture(scope="module")
def photos(collection: Any) -> list[Path]:
    return [path for path in collection.good if path.parent.name == "plain"]


@pytest.fixture
def start(
    commands: Commands, photos: list[Path], tmp_path: Path
) -> Callable[..., tuple[Command, Output]]:
    """Starts an instrumented run over the photos, to the test's own output."""

    def begin(way: str, *args: object, env: dict[str, str]) -> tuple[Command, Output]:
        output = Output(tmp_path / "output")
        command = commands.start(
            *(sys.executable, SCRIPT, way, tmp_path, photos[0].parent, "--output", output.folder),
            *(*SMALL, *args),
            env={"PYTHONPATH": str(SCRIPT.parents[2])} | env,
        )
        return command, output

    return begin


@pytest.fixture(scope="module")
def assert_complete(
    photos: list[Path], alone: Callable[[Path], Any], assert_rows: Callable[..., None]
) -> Callable[[Done, Output], None]:
    """Checks that every photo is embedded once, with the vector of a CPU in plain Python."""

    def check(done: Done, output: Output) -> None:
        assert done.code == 0, str(done)
        assert "Traceback" not in done.err
        assert_rows(output.rows(), [alone(path) for path in photos])
        assert verify(str(output.folder)).breaches == []

    return check


def test_one_encoder_on_one_gpu_has_16_calls_at_once(start, assert_complete, tmp_path) -> None:
    options = ("--shard-rows", 1, "--dtype", "float32")
    run, output = start("together", *options, env={"PATCHFLOW_TEST_GPUS": "1:8.0"})
    assert_complete(run.ended(), output)
    assert len(list((tmp_path / "starts").iterdir())) == 1


def test_a_job_on_a_cluster_whose_head_has_no_gpu_takes_the_dtype_of_its_gpus(
    cluster, commands, photos, alone, output_at, tmp_path
) -> None:
    working_dir = tmp_path / "working_dir"
    for room in ("encoder", "processors", "pipeline", "jobs"):
        shutil.copytree(SCRIPT.parents[2] / room, working_dir / room)
    output = output_at(tmp_path / "output")
    env = {name: value for name, value in cluster.env.items() if name != "RAY_ADDRESS"}
    done = commands.start(
        *(RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", working_dir),
        *("--", "python", "-m", "jobs.embed", photos[0].parent, "--output", output.folder),
        *(*SMALL, "--shard-rows", 8, "--gpus-per-encoder", 0.5, "--encoder-actors", 2),
        env=env,
    ).ended()
    assert done.code == 0, str(done)
    run = json.loads((output.folder / "_patchflow/run.json").read_bytes())
    assert run["semantics"]["compute_dtype"] == "float16"
    rows = {row["uri"]: np.array(row["embedding"]) for row in output.rows()}
    exact = {str(path): np.array(alone(path)["embedding"]) for path in photos}
    assert rows.keys() == exact.keys()
    for uri, vector in exact.items():
        # float16 rounds to 2**-11: the results are near, and not those of float32.
        error = np.abs(rows[uri] - vector).max() / np.abs(vector).max()
        assert 1e-5 < error < 5e-3
    # On a machine without GPUs, the same command resumes.
    again = commands.run("embed", photos[0].parent, "--output", output.folder, *SMALL)
    assert (again.code, "nothing to do" in again.out) == (0, True), str(again)


def test_of_three_encoders_on_two_gpus_one_waits_and_one_may_be_killed(
    cluster, commands, start, assert_complete, tmp_path
) -> None:
    options = ("--shard-rows", 2, "--dtype", "float32", "--encoder-actors", 3)
    run, output = start("held", *options, env=cluster.env)
    run.wait_until("the first shards are committed", output.commits)
    run.wait_until("both GPUs have an encoder", lambda: len(cluster.node.family(ENCODER)) == 2)

    def demanded() -> bool:
        status = commands.start(RAY, "status", env=cluster.env).ended()
        demand = status.out.partition("Demands:")[2]
        return "'GPU': 1.0" in demand and "1+ pending tasks" in demand

    run.wait_until("an autoscaler sees the third", demanded)
    cluster.node.family(ENCODER)[0].kill()
    (tmp_path / "go").touch()
    assert_complete(run.ended(), output)
    assert len(list((tmp_path / "starts").iterdir())) == 3
    assert "GPUs have room for 2 of 3 encoder actors" in run.errors()


@pytest.mark.whole
def test_an_encoder_whose_torch_sees_no_gpu_ends_the_run_with_one_line(cluster, start) -> None:
    run, output = start("blind", "--dtype", "float32", env=cluster.env)
    done = run.ended()
    assert done.code == 1, str(done)
    assert "patchflow embed: Ray has a GPU on " in done.err
    assert "install a CUDA build of torch" in done.err
    assert "Traceback" not in done.err
    assert output.rows() == output.rows("errors") == []


@pytest.mark.whole
def test_an_encoder_that_waits_starts_once_a_node_with_a_gpu_has_come(
    cluster, commands, free_ports, start, assert_complete, tmp_path
) -> None:
    options = ("--shard-rows", 2, "--dtype", "float32", "--encoder-actors", 3)
    run, output = start("eager", *options, env=cluster.env)
    run.wait_until("the first shards are committed", output.commits)
    node = start_node(commands, free_ports(1)[0], cluster.env, THIRD, gpus=1)
    run.wait_until("it is laid out anew", lambda: "machines were added" in run.errors())
    assert "and 3 GPU encoder actors instead of " in run.errors()
    node.wait_until("the new node has an encoder", lambda: node.family(ENCODER))
    (tmp_path / "go").touch()
    assert_complete(run.ended(), output)
    node.kill()
