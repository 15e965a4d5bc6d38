"""Real clusters that strangers could reach, and the local one, which they cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.support.strangers import doors, knock

RAY = Path(sys.executable).with_name("ray")
ACTOR = "ray::MapWorker"

# The command itself, where the kernel says that whatever listens does so on every interface.
EXPOSED = """
import sys
from jobs import embed
from pipeline import strangers
strangers._address = lambda host: strangers.ip_address("0.0.0.0")
embed.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def tokenless(commands, free_ports) -> Iterator[Any]:
    """A head without a token, on loopback alone; the environment of a driver."""
    port, client, agent = free_ports(3)
    env = {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    head = commands.start(
        *(RAY, "start", "--head", "--block", "--num-cpus", 2, "--disable-usage-stats"),
        *("--port", port, "--ray-client-server-port", client, "--include-dashboard", "false"),
        *("--dashboard-agent-listen-port", agent, "--object-store-memory", 300 * 2**20),
        env=env,
    )
    head.wait_until("it is up", lambda: "Ray runtime started" in head.output())
    head.env = env | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    yield head
    head.kill()


@pytest.mark.whole
def test_an_open_cluster_is_refused_before_any_actor_starts(
    tokenless, collection, commands, tmp_path
) -> None:
    args = (collection.growing, "--output", tmp_path / "output")
    done = commands.start(sys.executable, "-c", EXPOSED, *args, env=tokenless.env).ended()
    assert done.code == 2, str(done)
    (line,) = done.err.splitlines()
    address = tokenless.env["RAY_ADDRESS"]
    assert line.startswith(f"patchflow embed: the Ray cluster at {address} asks for no token, and")
    assert f"0.0.0.0:{address.rpartition(':')[2]}: " in line and "RAY_AUTH_MODE=token" in line
    assert not tokenless.family(ACTOR)
    assert not (tmp_path / "output").exists()


@pytest.mark.whole
def test_an_open_cluster_is_joined_where_that_is_asked_for_and_warned_about(
    tokenless, commands, tmp_path
) -> None:
    args = (tmp_path / "nothing", "--output", tmp_path / "output", "--insecure-ray")
    done = commands.start(sys.executable, "-c", EXPOSED, *args, env=tokenless.env).ended()
    assert done.code == 2, str(done)
    warning, line = done.err.splitlines()
    assert warning.startswith("patchflow: WARNING: the Ray cluster at ")
    assert str(tmp_path / "nothing") in line


@pytest.mark.whole
def test_a_cluster_on_loopback_alone_needs_no_token(tokenless, commands, tmp_path) -> None:
    args = (tmp_path / "nothing", "--output", tmp_path / "output")
    done = commands.run("embed", *args, env=tokenless.env)
    (line,) = done.err.splitlines()
    assert str(tmp_path / "nothing") in line


@pytest.mark.whole
def test_a_local_run_listens_on_loopback_and_answers_nobody_without_its_token(
    collection, commands, tmp_path
) -> None:
    running = commands.job("embed", collection.folder / "plain", "--output", tmp_path / "output")
    running.wait_until("its actors are up", lambda: len(running.family(ACTOR)) > 1)
    found = {door: knock(door) for door in doors(running.family())}
    running.kill()
    assert all(ip_address(door.host).is_loopback for door in found)
    answers = [set(counts) for counts in found.values() if counts]
    assert all(kinds in ({"UNAUTHENTICATED"}, {"401"}, {"metrics"}) for kinds in answers)
    # GCS, raylet twice, the agent, the driver, and both actors.
    assert answers.count({"UNAUTHENTICATED"}) >= 7
