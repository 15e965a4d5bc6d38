"""A cluster of two machines, one of which dies in mid-run; later another one joins."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.verify import verify
from tests.support.crowd import SHARDS, moved

SCRIPT = Path(__file__).with_name("two_nodes.py")
CPUS = 2

# The command itself, with less patience for machines that go and come: it has minutes otherwise.
EAGER = """
import sys
from jobs import embed
import pipeline.brake
pipeline.brake._LOST_S = pipeline.brake._CAME_S = 3.0
embed.main(sys.argv[1:])
"""
COPIES = 4


@pytest.fixture
def cluster(commands, tmp_path) -> Iterator[Any]:
    """Two machines of two CPUs each; the environment of a driver on the first."""
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = commands.start(sys.executable, SCRIPT, CPUS, env=auth)
    command.wait_until("both machines are up", lambda: command.output().endswith("\n"))
    command.env = auth | {"RAY_ADDRESS": command.output().split()[0]}
    yield command
    command.process.send_signal(signal.SIGTERM)
    command.ended()


def tell(cluster: Any, number: signal.Signals, answer: str) -> None:
    cluster.process.send_signal(number)
    cluster.wait_until(f"it has {answer}", lambda: cluster.output().endswith(f"{answer}\n"))


@pytest.fixture
def crowds(crowd, tmp_path) -> dict[str, str]:
    """The crowd several times, so that there is time to change machines: URIs and originals'."""
    found = {}
    for number in range(COPIES):
        for uri in crowd.originals:
            copy = tmp_path / "crowds" / str(number) / Path(uri).relative_to(crowd.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(uri)
            found[str(copy)] = uri
    return found


@pytest.mark.whole
def test_a_run_outlives_a_machine_and_takes_in_another(
    cluster, crowd, crowds, commands, output_at, assert_rows, score, tmp_path
) -> None:
    output = output_at(tmp_path / "output")
    args = (tmp_path / "crowds", *crowd.options, "--output", output.folder)
    running = commands.start(sys.executable, "-c", EAGER, *args, env=cluster.env)
    running.wait_until("the first commits", lambda: len(output.commits()) > 1)
    tell(cluster, signal.SIGUSR1, "killed")
    score.kills += 1
    running.wait_until("it goes on without", lambda: "machines were lost" in running.errors())
    before = len(output.commits())
    running.wait_until("it commits again", lambda: len(output.commits()) > before)
    tell(cluster, signal.SIGUSR2, "joined")
    running.wait_until("it goes on with it", lambda: "machines were added" in running.errors())
    done = running.ended()
    assert done.code == 0, str(done)
    assert "Traceback" not in done.err
    assert "(raylet)" not in done.err + done.out
    assert f"{COPIES * SHARDS} committed" in done.out
    rows = {row["uri"]: row for row in crowd.embeddings}
    expected = [moved(rows[uri], copy) for copy, uri in crowds.items() if uri in rows]
    assert_rows(output.rows(), expected)
    score.rows(crowds, output.terminal())
    score.objects(verify(str(output.folder)).breaches)


@pytest.mark.whole
def test_a_driver_that_is_killed_leaves_the_cluster_to_the_next_one(
    cluster, crowd, commands, output_at, assert_rows, score, tmp_path
) -> None:
    output = output_at(tmp_path / "output")
    args = (*crowd.args, "--output", output.folder)
    running = commands.job("embed", *args, env=cluster.env)
    running.wait_until("the first commits", lambda: len(output.commits()) > 1)
    running.process.kill()
    score.kills += 1
    done = commands.run("embed", *args, env=cluster.env)
    assert done.code == 0, str(done)
    assert_rows(output.rows(), crowd.embeddings)
    score.rows(crowd.originals, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
