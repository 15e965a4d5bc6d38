"""The score of the faults: every case under its group, and what it found lost or twice.

A case is one test, reproduced by its name, which holds its seed: `pytest tests/faults -k NAME`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.faults.simulation import TALLY


@dataclass
class Score:
    """What one case did, and what it found."""

    kills: int = 0
    lost: int = 0
    duplicated: int = 0
    unreadable: int = 0

    def rows(self, planned: Iterable[str], terminal: Iterable[str]) -> None:
        """Counts items without a terminal row, and rows that are more than one for an item."""
        wanted, found = set(planned), Counter(terminal)
        self.lost += len(wanted - set(found))
        self.duplicated += sum(found.values()) - len(found)
        self.duplicated += len(set(found) - wanted)

    def objects(self, breaches: Iterable[str]) -> None:
        """Counts what an audit found broken."""
        self.unreadable += len(list(breaches))

    def add(self, other: Score) -> None:
        """Adds up."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Group:
    """The cases of one file."""

    passed: int = 0
    failed: int = 0
    not_run: Counter[str] = field(default_factory=Counter)
    score: Score = field(default_factory=Score)

    @property
    def cases(self) -> int:
        return self.passed + self.failed + self.not_run.total()


_GROUPS = pytest.StashKey[dict[str, Group]]()
_SCORE = pytest.StashKey[Score]()


@pytest.fixture
def score(request: pytest.FixtureRequest) -> Iterator[Score]:
    """What the test reports of itself; anything lost, twice or unreadable fails it."""
    found = request.node.stash.setdefault(_SCORE, Score())
    yield found
    assert (found.lost, found.duplicated, found.unreadable) == (0, 0, 0), found


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_GROUPS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if Path(__file__).parent not in item.path.parents:
        return report
    group = item.config.stash[_GROUPS].setdefault(item.path.stem.removeprefix("test_"), Group())
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        group.not_run[reason.removeprefix("Skipped: ")] += 1
    elif report.failed:
        # Of a test that passed and whose fixtures then failed, it is the end that counts.
        group.passed -= report.when == "teardown"
        group.failed += 1
    elif report.when == "call":
        group.passed += 1
    if report.when == "teardown":
        group.score.add(item.stash.get(_SCORE, Score()))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    groups = config.stash[_GROUPS]
    if not groups:
        return
    names = ("cases", "passed", "failed", "not run", "kills", "lost", "duplicated", "unreadable")
    table = Table("faults", *names, box=None)
    total = Group()
    for name, group in sorted(groups.items()):
        table.add_row(name, *map(str, _numbers(group)))
        total.passed += group.passed
        total.failed += group.failed
        total.not_run.update({f"{name}: {reason}": n for reason, n in group.not_run.items()})
        total.score.add(group.score)
    console = Console(file=terminalreporter._tw._file, width=100, highlight=False)
    console.print()
    console.print(table)
    for reason, count in total.not_run.items():
        console.print(f"not run: {count} of {reason}", markup=False)
    if TALLY.histories:
        console.print(
            f"simulated: {TALLY.histories:,} histories of the protocol, {TALLY.kills:,} processes "
            f"killed and {TALLY.disturbances:,} disturbed in them"
        )
    score = total.score
    console.print(
        f"{total.passed}/{total.cases} cases, {score.kills} kills: {score.lost} lost, "
        f"{score.duplicated} duplicated, {score.unreadable} unreadable"
    )


def _numbers(group: Group) -> tuple[int, ...]:
    score = group.score
    counts = (group.cases, group.passed, group.failed, group.not_run.total())
    return (*counts, score.kills, score.lost, score.duplicated, score.unreadable)
