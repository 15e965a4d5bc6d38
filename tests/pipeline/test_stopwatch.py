"""Where an actor's time goes, by a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import stopwatch
from pipeline.progress import Counts
from pipeline.stopwatch import Stopwatch


class Clock:
    """A clock of the wall, and a CPU's, which the process has half of the time."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.now / 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stopwatch, "time", found)
    return found


def test_what_is_not_waited_for_is_work(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.turn(100.0, 100.0) as counts:
        clock.now += 1
        with watch.waiting("fetch_s"):
            clock.now += 2
        with watch.waiting("decode_s"):
            clock.now += 4
        with watch.waiting("decode_s"):
            clock.now += 8
        clock.now += 16
    assert counts == Counts(fetch_s=2.0, decode_s=12.0, resize_s=17.0, cpu_s=8.5)


def test_values_are_waited_for_and_what_is_done_with_them_is_work(clock: Clock) -> None:
    def slow() -> Iterator[str]:
        for value in "ab":
            clock.now += 2
            yield value
        clock.now += 1

    watch = Stopwatch()
    with watch.turn(100.0, 100.0) as counts:
        for value in watch.over("decode_s", slow()):
            clock.now += {"a": 10, "b": 20}[value]
    assert counts == Counts(decode_s=5.0, resize_s=30.0, cpu_s=15.0)


def test_the_first_file_is_waited_for_while_nobody_else_has_the_turn(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now = 110.0
    with watch.turn(102.0, 106.0) as alone:
        clock.now = 120.0
    # It began in the other's turn, and waited for two seconds more.
    with watch.turn(115.0, 122.0) as longer:
        clock.now = 130.0
    # Its file came while it was the other's turn.
    with watch.turn(123.0, 124.0) as hidden:
        pass
    assert (alone.fetch_s, longer.fetch_s, hidden.fetch_s) == (4.0, 2.0, 0.0)
    assert (alone.resize_s, longer.resize_s, hidden.resize_s) == (10.0, 10.0, 0.0)


def test_a_turn_that_fails_ends_too(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(OSError), watch.turn(100.0, 100.0), watch.waiting("fetch_s"):
        clock.now = 105.0
        raise OSError
    with watch.turn(101.0, 104.0) as counts:
        pass
    assert counts == Counts()
