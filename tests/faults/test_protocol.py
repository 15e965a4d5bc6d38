"""The whole protocol as a state machine: hypothesis looks for the shortest story that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.faults.simulation import REQUESTS, Outcome, Process
from tests.faults.world import OpenWorld, World, simulated

MOST_RUNNING = 5
# Which of several processes or items is meant; taken modulo their number.
CHOICE = st.integers(0, MOST_RUNNING - 1)


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWorld]:
    with simulated(tmp_path_factory.mktemp("worlds")) as found:
        yield found


class Protocol(RuleBasedStateMachine):
    """Invariants are checked after every step of a process, and at the end."""

    world: World

    def __init__(self, open_world: OpenWorld, kind: str) -> None:
        super().__init__()
        self._open, self._kind = open_world, kind
        self._stack = ExitStack()

    @initialize(
        items=st.integers(1, 4),
        shard_rows=st.integers(1, 3),
        parted=st.booleans(),
        old=st.booleans(),
        drivers=st.integers(1, 3),
    )
    def begin(self, items: int, shard_rows: int, parted: bool, old: bool, drivers: int) -> None:
        layout = {"shard_rows": shard_rows, "partition_by": ("label",) if parted else ()}
        self.world = self._stack.enter_context(self._open(self._kind, "a story", **layout))
        self.world.add(items)
        if old:
            self.world.litter()
        for _ in range(drivers):
            self.world.drive()

    def running(self) -> bool:
        return bool(self.world.simulation.running)

    def room(self) -> bool:
        return len(self.world.simulation.running) < MOST_RUNNING

    def chosen(self, choice: int) -> Process:
        running = self.world.simulation.running
        return running[choice % len(running)]

    @rule(changed=st.none() | CHOICE)
    def new_inputs(self, changed: int | None) -> None:
        if changed is None:
            self.world.add(1)
        else:
            self.world.change(changed % len(self.world.collection))

    @precondition(room)
    @rule(command=st.sampled_from(["embed", "embed --shards 0:1", "plan"]))
    def start(self, command: str) -> None:
        if command == "plan":
            self.world.plan()
        else:
            self.world.drive("0:1" if "0:1" in command else None)

    @precondition(running)
    @rule(choice=CHOICE, steps=st.integers(1, 8))
    def few_steps(self, choice: int, steps: int) -> None:
        """Whoever is not chosen sleeps meanwhile, and for as long as it is not."""
        self.world.simulation.run(self.chosen(choice), steps)

    @precondition(running)
    @rule(choice=CHOICE)
    def many_steps(self, choice: int) -> None:
        self.few_steps(choice, 30)

    @precondition(running)
    @rule(choice=CHOICE)
    def kill(self, choice: int) -> None:
        self.world.simulation.step(self.chosen(choice), "killed")

    @precondition(running)
    @rule(choice=CHOICE, outcome=st.sampled_from(["refused", "lost", "late", "twice"]))
    def disturb(self, choice: int, outcome: Outcome) -> None:
        process = self.chosen(choice)
        if outcome in ("refused", "lost") or process.operation in REQUESTS:
            self.world.simulation.step(process, outcome)

    @rule()
    def late_requests_arrive(self) -> None:
        self.world.simulation.deliver()

    def teardown(self) -> None:
        """All is finished while the processes that are left sleep; then they wake."""
        with self._stack:
            if hasattr(self, "world"):
                self.world.finish(zombies=tuple(self.world.simulation.running))


def explore(open_world: OpenWorld, kind: str, stories: int) -> None:
    run_state_machine_as_test(
        lambda: Protocol(open_world, kind),
        settings=settings(
            max_examples=stories,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(("kind", "stories"), [("disk", 5), ("s3", 20)])
def test_no_story_breaks_the_protocol(open_world: OpenWorld, kind: str, stories: int) -> None:
    explore(open_world, kind, stories)


@pytest.mark.whole
@pytest.mark.parametrize(("kind", "stories"), [("disk", 100), ("s3", 400)])
def test_none_of_many_stories_breaks_the_protocol(
    open_world: OpenWorld, kind: str, stories: int
) -> None:
    explore(open_world, kind, stories)
