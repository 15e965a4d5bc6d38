"""One driver, disturbed at every single operation that it does, and the same command after it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from random import Random

import pytest

from pipeline.location import join
from pipeline.storage import storage_for
from tests.faults.simulation import REQUESTS, Outcome, Process
from tests.faults.world import OpenWorld, World, simulated

KINDS = ("disk", "s3")
# Requests of a commit and of a planning, and steps of a creation on a disk, at least.
COMMIT, PLANNING, CREATION = 7, 5, 13


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWorld]:
    with simulated(tmp_path_factory.mktemp("worlds")) as found:
        yield found


def points(open_world: OpenWorld, kind: str, items: int) -> list[str]:
    """The operations of a driver that plans and commits `items` undisturbed."""
    with open_world(kind, "undisturbed") as world:
        world.add(items)
        driver, found = world.drive(), []
        while not driver.ended:
            found.append(driver.operation)
            world.simulation.step(driver)
        world.finish()
    return found


def drive_to(world: World, point: int) -> Process:
    """A driver before its operation `point`, or at its end if it comes to fewer."""
    driver = world.drive()
    world.simulation.run(driver, point)
    return driver


def drive_to_commit(world: World) -> Process:
    """A driver before the first operation of its first shard's commit."""
    driver = world.drive()
    while not driver.place.endswith("commits/g000000-00000000.json"):
        world.simulation.step(driver)
    return driver


def kill_at(world: World, point: int) -> None:
    """A driver that is killed before its operation `point`, if it comes so far."""
    driver = drive_to(world, point)
    if not driver.ended:
        world.simulation.step(driver, "killed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_driver_killed_at_any_operation_is_resumed(open_world: OpenWorld, kind: str) -> None:
    found = points(open_world, kind, items=2)
    assert len(found) > 15
    for point in range(len(found)):
        with open_world(kind, f"killed at {point}") as world:
            world.add(2)
            world.litter()
            kill_at(world, point)
            world.finish()


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_drivers_killed_at_any_operation_of_a_later_generation_are_resumed(
    open_world: OpenWorld, kind: str
) -> None:
    found = points(open_world, kind, items=4)
    for point in range(len(found)):
        for second in Random(point).sample(range(len(found)), 3):
            with open_world(kind, f"killed at {point}, {second}", partition_by=("label",)) as world:
                world.add(3)
                world.simulation.run(world.drive())
                world.add(2)
                world.change(0)
                kill_at(world, point)
                kill_at(world, second)
                world.change(0)
                kill_at(world, second)
                world.finish()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        *(pytest.param("disk", name, marks=pytest.mark.whole) for name in ("refused", "lost")),
        *(("s3", name) for name in ("refused", "lost", "late", "twice")),
    ],
)
def test_a_driver_of_which_any_operation_fails_is_resumed(
    open_world: OpenWorld, kind: str, outcome: Outcome
) -> None:
    for point, operation in enumerate(points(open_world, kind, items=3)):
        if outcome in ("late", "twice") and operation not in REQUESTS:
            continue
        with open_world(kind, f"{outcome} at {point}") as world:
            world.add(3)
            driver = drive_to(world, point)
            world.simulation.step(driver, outcome)
            world.simulation.run(driver)
            world.add(1)
            world.finish()


@pytest.mark.parametrize("kind", [pytest.param("disk", marks=pytest.mark.whole), "s3"])
def test_a_driver_asleep_at_any_operation_wakes_to_no_harm(
    open_world: OpenWorld, kind: str
) -> None:
    for point in range(len(points(open_world, kind, items=3))):
        with open_world(kind, f"asleep at {point}") as world:
            world.add(3)
            sleeper = drive_to(world, point)
            world.add(1)
            world.simulation.run(world.drive())
            world.add(2)
            world.change(0)
            world.finish(zombies=(sleeper,))


@pytest.mark.parametrize("end", ["first wakes", "second wakes", "first dies", "second dies"])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.whole)])
def test_two_commits_of_one_shard_meet_at_any_two_operations(
    open_world: OpenWorld, step: int, end: str
) -> None:
    """Both drivers have seen the shard open: nothing but the commit keeps them apart."""
    for first, second in [*product(range(COMMIT), repeat=2)][::step]:
        with open_world("s3", f"{first} operations of one, {second} of the other") as world:
            world.add(1)
            pair = drive_to_commit(world), drive_to_commit(world)
            for driver, count in zip(pair, (first, second), strict=True):
                world.simulation.run(driver, count)
            later = pair if end.startswith("first") else pair[::-1]
            if end.endswith("dies"):
                if not later[0].ended:
                    world.simulation.step(later[0], "killed")
                world.finish(zombies=later[1:])
            else:
                world.simulation.run(later[1])
                world.finish()


@pytest.mark.parametrize("end", ["first wakes", "second wakes"])
def test_two_plannings_that_meet_at_any_two_operations_are_two_generations(
    open_world: OpenWorld, end: str
) -> None:
    for first, second in product(range(PLANNING), repeat=2):
        with open_world("s3", f"{first} operations of one, {second} of the other") as world:
            world.add(2)
            pair = [world.plan()]
            world.simulation.run(pair[0], first)
            world.add(1)
            pair.append(world.plan())
            world.simulation.run(pair[1], second)
            for planner in pair if end == "second wakes" else pair[::-1]:
                world.simulation.run(planner)
            world.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_creations_that_meet_at_any_two_operations_one_wins(
    open_world: OpenWorld, kind: str
) -> None:
    for first, second in product(range(CREATION), repeat=2):
        with open_world(kind, f"{first} operations of one, {second} of the other") as world:
            place, won = join(world.output, "folder/object"), []

            def create(name: bytes, place: str = place, won: list[bytes] = won) -> None:
                if storage_for(place).create(place, name):
                    won.append(name)

            pair = [world.simulation.start(n, partial(create, n.encode())) for n in ("a", "b")]
            for creator, count in zip(pair, (first, second), strict=True):
                world.simulation.run(creator, count)
            for creator in pair:
                world.simulation.run(creator)
            assert won == [storage_for(place).read(place)]
