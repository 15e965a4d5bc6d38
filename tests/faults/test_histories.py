"""Thousands of seeded histories: drivers, planners, deaths, failures and sleepers in any order.

A history is a function of its seed alone: `history(world, Random(seed))`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from pipeline.s3 import S3Storage
from tests.faults.simulation import REQUESTS, Outcome, Process
from tests.faults.world import OpenWorld, World, simulated

CHUNK = 50
# Chunks of seeds on each kind of storage; and seeds on a real server, which takes its time.
QUICK, WHOLE = 1, 20
ON_SERVER = 100

EVENTS = {
    "steps": 100,
    "drive": 15,
    "plan": 3,
    "kill": 5,
    "disturb": 5,
    "sleep": 5,
    "wake": 3,
    "grow": 3,
    "arrive": 3,
}


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWorld]:
    with simulated(tmp_path_factory.mktemp("worlds")) as found:
        yield found


def layout(random: Random) -> dict[str, object]:
    """How the output of a history is cut."""
    parted = random.random() < 0.3
    return {"shard_rows": random.randint(1, 4), "partition_by": ("label",) if parted else ()}


def history(world: World, random: Random) -> None:
    """What happens to `world`, to its end."""
    # Of one item, there is one shard, and all meet at it.
    world.add(random.choice([1, 1, 3, 6]))
    if random.random() < 0.3:
        world.litter()
    asleep: list[Process] = []
    # Long stretches are needed to get anywhere, short ones to meet others half way.
    pace = random.choice([1, 2, 5]) * (1 if world.output.startswith("s3:") else 6)
    for _ in range(random.randint(0, 3)):
        start(world, random, "drive")
    for _ in range(random.randint(20, 100)):
        awake = [process for process in world.simulation.running if process not in asleep]
        (event,) = random.choices([*EVENTS], [*EVENTS.values()])
        if event in ("drive", "plan") and len(awake) < 4:
            start(world, random, event)
        elif event == "grow" and len(world.collection) < 12:
            grow(world, random)
        elif event == "arrive":
            world.simulation.deliver()
        elif event == "wake" and asleep:
            asleep.remove(random.choice(asleep))
        elif event in ("steps", "kill", "disturb", "sleep") and awake:
            happen(world, random, event, random.choice(awake), asleep, pace)
    world.finish(zombies=tuple(process for process in asleep if not process.ended))


def start(world: World, random: Random, event: str) -> None:
    if event == "plan":
        world.plan()
    else:
        world.drive(random.choice([None, None, "0:1", "0:2"]))


def grow(world: World, random: Random) -> None:
    if random.random() < 0.5:
        world.add(random.randint(1, 3))
    else:
        world.change(random.randrange(len(world.collection)))


def happen(
    world: World, random: Random, event: str, process: Process, asleep: list[Process], pace: int
) -> None:
    if event == "sleep":
        asleep.append(process)
    elif event == "kill":
        world.simulation.step(process, "killed")
    elif event == "disturb":
        world.simulation.step(process, disturbance(random, process))
    else:
        world.simulation.run(process, random.randint(1, 2 * pace))


def disturbance(random: Random, process: Process) -> Outcome:
    """What can become of the pending operation of `process`."""
    found: list[Outcome] = ["refused", "lost"]
    if process.operation in REQUESTS:
        found += ["late", "twice"]
    return random.choice(found)


def run_chunk(open_world: OpenWorld, kind: str, seeds: range) -> None:
    for seed in seeds:
        random = Random(seed)
        with open_world(kind, f"history {seed}", **layout(random)) as world:
            history(world, random)


@pytest.mark.parametrize("kind", ["disk", "s3"])
@pytest.mark.parametrize("chunk", range(QUICK))
def test_every_history_ends_well(open_world: OpenWorld, kind: str, chunk: int) -> None:
    run_chunk(open_world, kind, range(chunk * CHUNK, (chunk + 1) * CHUNK))


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["disk", "s3"])
@pytest.mark.parametrize("chunk", range(QUICK, WHOLE))
def test_every_one_of_many_histories_ends_well(
    open_world: OpenWorld, kind: str, chunk: int
) -> None:
    run_chunk(open_world, kind, range(chunk * CHUNK, (chunk + 1) * CHUNK))


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_history_is_a_function_of_its_seed(open_world: OpenWorld, kind: str) -> None:
    traces = []
    for _ in range(2):
        random = Random(4)
        with open_world(kind, "history 4", **layout(random)) as world:
            history(world, random)
        # Names that nobody else may have, and the place, differ.
        told = "\n".join(world.simulation.trace).replace(world.output, "")
        traces.append(re.sub(r"[0-9a-f]{32}|[0-9a-f]{12}-", "", told))
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 100


@pytest.mark.whole
def test_histories_on_a_real_server_end_well(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with simulated(tmp_path, S3Storage()) as open_world:
        run_chunk(open_world, "s3", range(ON_SERVER))
    s3fs.S3FileSystem.clear_instance_cache()
