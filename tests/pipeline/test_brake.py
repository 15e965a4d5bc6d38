"""The brake stops a main thread that waits, and nothing else does in its name."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from pipeline.brake import Brake, ErrorRate
from pipeline.errors import ErrorRateError
from pipeline.progress import Counts

PATIENCE_S = 10.0
BAD = Counts(items=100, errors=Counter(truncated=60, corrupt=30))


@pytest.fixture(params=["default", "blocked", "ignored"])
def ctrl_c(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT as a terminal has it, as Ray's jobs have it, and as a shell's background has it."""
    before = signal.getsignal(signal.SIGINT)
    if request.param == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    elif request.param == "ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def test_a_check_that_fails_in_another_thread_ends_the_wait(ctrl_c: None) -> None:
    brake = Brake(ErrorRate(0.5, Counts()).watch)
    threading.Timer(0.1, brake.watch, [BAD]).start()
    started = time.monotonic()
    with (
        pytest.raises(ErrorRateError, match=r"90 of 100 items failed \(truncated 60, corrupt 30\)"),
        brake,
    ):
        time.sleep(PATIENCE_S)
    assert time.monotonic() - started < PATIENCE_S / 2


def test_a_persons_interrupt_stays_one_after_the_brake_has_pulled() -> None:
    brake = Brake(ErrorRate(0.5, Counts()).watch)

    def wait() -> None:
        try:
            time.sleep(PATIENCE_S)
        finally:  # What is going down is interrupted once more.
            raise KeyboardInterrupt

    threading.Timer(0.1, brake.watch, [BAD]).start()
    with pytest.raises(KeyboardInterrupt) as caught, brake:
        wait()
    assert caught.type is KeyboardInterrupt


def test_what_fails_on_the_way_down_does_not_hide_why() -> None:
    brake = Brake(ErrorRate(0.5, Counts()).watch)

    def wait() -> None:
        try:
            time.sleep(PATIENCE_S)
        finally:
            raise ConnectionError("the actors are gone")

    threading.Timer(0.1, brake.watch, [BAD]).start()
    with pytest.raises(ErrorRateError, match="90 of 100") as caught, brake:
        wait()
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_earlier_passes_count_for_the_rate() -> None:
    done = Counts(items=10_000, errors=Counter(corrupt=100))
    ErrorRate(0.1, done).watch(BAD)
    with pytest.raises(ErrorRateError, match="90 of 100"):
        ErrorRate(0.1, Counts()).watch(BAD)


def test_few_items_say_nothing_yet() -> None:
    rate = ErrorRate(0.1, Counts())
    rate.watch(Counts(items=99, errors=Counter(corrupt=99)))
    with pytest.raises(ErrorRateError, match="99 of 99"):
        rate.check(99, Counter(corrupt=99))
