"""`ray job submit` to a real local head that asks for a token."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.strangers import Door, doors, knock

ROOT = Path(__file__).parents[2]
ROOMS = ("encoder", "processors", "pipeline", "jobs")
RAY = Path(sys.executable).with_name("ray")
ACTOR = "ray::MapWorker"
NODE = "127.0.0.2"  # Ray takes 127.0.0.1 for another name of the machine's public address.


@dataclass(frozen=True)
class Cluster:
    """A running head."""

    address: str
    env: dict[str, str]
    head: Any
    working_dir: Path
    client: Door

    @property
    def token(self) -> str:
        return Path(self.env["HOME"], ".ray", "auth_token").read_text()

    def submit(self, commands, *args: object, env: dict[str, str] | None = None) -> Any:
        """`ray job submit -- python -m jobs.embed ARGS`, to its end."""
        return commands.start(
            *(RAY, "job", "submit", "--address", self.address, "--working-dir", self.working_dir),
            *("--", "python", "-m", "jobs.embed", *args),
            env=self.env if env is None else env,
        ).ended()


@pytest.fixture(scope="module")
def cluster(commands, free_ports, tmp_path_factory) -> Iterator[Cluster]:
    """A head with a token, a dashboard on the loopback interface, and a copy of the four rooms."""
    home = tmp_path_factory.mktemp("home")
    working_dir = tmp_path_factory.mktemp("working_dir")
    for room in ROOMS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, working_dir / room, ignore=ignore)
    env = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "PATH": f"{Path(sys.executable).parent}:{commands.env['PATH']}",
    }
    generated = commands.start(RAY, "get-auth-token", "--generate", env=env).ended()
    assert generated.code == 0, str(generated)
    dashboard, client, agent = free_ports(3)
    head = commands.start(
        *(RAY, "start", "--head", "--block", "--num-cpus", 3, "--disable-usage-stats"),
        *("--node-ip-address", NODE, "--port", 0, "--ray-client-server-port", client),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard),
        *("--dashboard-agent-listen-port", agent, "--object-store-memory", 300 * 2**20),
        env=env,
    )
    address = f"http://127.0.0.1:{dashboard}"
    found = Cluster(address, env, head, working_dir, Door(NODE, client))

    def takes_jobs() -> bool:
        listing = (RAY, "job", "list", "--address", found.address)
        return commands.start(*listing, env=env).ended().code == 0

    head.wait_until("the cluster takes jobs", takes_jobs)
    yield found
    head.kill()


@pytest.fixture(scope="module")
def submitted(cluster, collection, clean_run, commands, output_at, tmp_path_factory) -> Any:
    output = output_at(tmp_path_factory.mktemp("submitted") / "output")
    source = collection.folder / "plain"
    done = cluster.submit(
        commands, source, "--output", output.folder, "--shard-rows", 8, *clean_run.args[-2:]
    )
    assert done.code == 0, str(done)
    return done, output, source


def test_a_submitted_job_writes_the_same_rows_as_a_local_run(
    submitted, clean_run, assert_rows
) -> None:
    _, output, source = submitted
    expected = [row for row in clean_run.rows if row["uri"].startswith(f"{source}/")]
    assert len(expected) > 20
    assert_rows(output.rows(), expected)
    assert output.rows("errors") == []
    assert output.commits() == {f"g000000-{n:08d}" for n in range(-(-len(expected) // 8))}


def test_its_log_holds_the_summary_and_nothing_of_ray_data(submitted) -> None:
    done, output, _ = submitted
    assert "RANDOM weights" in done.out
    assert str(output.folder) in done.out
    for chatter in ("ray::", "(raylet", "streaming_executor", "UserWarning", "Traceback"):
        assert chatter not in done.out + done.err


def test_its_output_verifies(submitted, commands) -> None:
    _, output, _ = submitted
    audit = commands.run("verify", "--output", output.folder)
    assert audit.code == 0, str(audit)


def test_the_cluster_s_resources_are_free_after_the_job(submitted, cluster) -> None:
    cluster.head.wait_until("its actors are gone", lambda: not cluster.head.family(ACTOR))
    assert psutil.pid_exists(cluster.head.process.pid)


def test_a_submitted_job_that_cannot_work_fails_with_its_one_line(
    submitted, cluster, commands
) -> None:
    _, output, source = submitted
    before = output.objects()
    done = cluster.submit(commands, source, "--output", output.folder, "--max-pixels", 40000)
    assert done.code == 1, str(done)
    assert "max_pixels was 50176, now 40000" in done.out
    assert "exit code 2" in done.out
    assert "Traceback" not in done.out
    assert output.objects() == before


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_TOKEN": "0" * 64}], ids=["none", "a wrong one"])
def test_a_submit_without_the_token_is_refused(
    token, cluster, collection, commands, tmp_path
) -> None:
    output = tmp_path / "output"
    env = cluster.env | {"HOME": str(tmp_path)} | token
    done = cluster.submit(commands, collection.growing, "--output", output, env=env)
    assert done.code != 0, str(done)
    assert "AuthenticationError" in done.err
    assert not output.exists()


def post_job(cluster: Cluster, token: str | None, entrypoint: str) -> int:
    """Posts a job as any client of the network's may, and returns the answer's status."""
    request = urllib.request.Request(
        f"{cluster.address}/api/jobs/",
        data=json.dumps({"entrypoint": entrypoint}).encode(),
        headers={"Content-Type": "application/json"}
        | ({"Authorization": f"Bearer {token}"} if token else {}),
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_job_post_without_the_token_runs_nothing(cluster, tmp_path) -> None:
    statuses = [
        post_job(cluster, token, f"touch {tmp_path / name}")
        for name, token in (("none", None), ("wrong", "0" * 64), ("right", cluster.token))
    ]
    assert statuses == [401, 403, 200]
    cluster.head.wait_until("the job has run", (tmp_path / "right").exists)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


@pytest.mark.parametrize("token", [None, "0" * 64], ids=["none", "a wrong one"])
def test_nothing_that_a_head_listens_on_answers_without_the_token(cluster, token) -> None:
    found = {door: knock(door, token) for door in doors(cluster.head.family())}
    assert found[cluster.client].keys() == {"UNAUTHENTICATED"}
    kinds = Counter(answer for answers in found.values() for answer in answers)
    assert kinds.keys() == {"UNAUTHENTICATED", "401" if token is None else "403", "metrics"}
    # GCS, raylet twice, the agent, the client's server: at least.
    assert kinds["UNAUTHENTICATED"] >= 5
    known = knock(cluster.client, cluster.token)
    assert known and "UNAUTHENTICATED" not in known
