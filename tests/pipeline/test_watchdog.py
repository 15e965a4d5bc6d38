"""Deadlines, with time that a test lets pass."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from encoder import Glm4vVisionConfig, forward_flop
from pipeline.shared_packs import SharedPacks
from pipeline.watchdog import LEAST_S, MOST_S, PackDeadlines, Watchdog
from tests.support.pack_device import Device, Items, block_of

CONFIG = Glm4vVisionConfig()


@pytest.fixture
def expired() -> list[str]:
    return []


@pytest.fixture
def watchdog(expired: list[str]) -> Watchdog:
    return Watchdog(expired.append)


def test_what_is_past_its_deadline_is_reported_once(watchdog: Watchdog, expired: list[str]) -> None:
    watchdog.begin("a pack", 60.0)
    watchdog.advance(59.9)
    assert expired == []
    watchdog.advance(0.2)
    assert expired == ["a pack hangs: past its deadline of 60 s"]
    watchdog.advance(60.0)
    assert len(expired) == 1


def test_what_is_done_has_no_deadline_any_more(watchdog: Watchdog, expired: list[str]) -> None:
    with watchdog.limit("the start", 10.0):
        watchdog.advance(9.0)
    with pytest.raises(ValueError, match="it fails"), watchdog.limit("the next", 10.0):
        raise ValueError("it fails")
    watchdog.advance(100.0)
    assert expired == []


def test_its_own_thread_lets_time_pass() -> None:
    came = threading.Event()
    watchdog = Watchdog(lambda what: came.set())
    watchdog.begin("a pack", 0.5)
    watchdog.start()
    assert came.wait(30)


def test_a_pack_may_take_a_multiple_of_what_those_before_took(
    watchdog: Watchdog, expired: list[str]
) -> None:
    deadlines = PackDeadlines(watchdog, CONFIG)
    small, large = [(16, 16)], [(16, 16)] * 100
    first = deadlines.begin(small)
    watchdog.advance(MOST_S - 1)  # Nobody knows yet how fast the device is.
    deadlines.end(first, 0.1)
    # A hundred times as much work: 10 seconds, of which it may take 20 times as many.
    second = deadlines.begin(large)
    watchdog.advance(199.0)
    assert expired == []
    # One that follows on waits for it, too: 20 times 10.1 seconds.
    third = deadlines.begin(small)
    watchdog.advance(0.5)
    deadlines.end(second, 10.0)
    watchdog.advance(201.0)
    assert expired == []
    watchdog.advance(1.0)
    assert expired == ["a pack of 1 segments hangs: past its deadline of 202 s"]
    deadlines.end(third, None)


def test_a_short_pack_has_time_too(watchdog: Watchdog, expired: list[str]) -> None:
    deadlines = PackDeadlines(watchdog, CONFIG)
    speed = 1e12
    deadlines.end(deadlines.begin([(64, 64)]), forward_flop(CONFIG, [(1, 64, 64)]) / speed)
    deadlines.begin([(2, 2)])
    watchdog.advance(LEAST_S - 1)
    assert expired == []
    watchdog.advance(2.0)
    assert expired == ["a pack of 1 segments hangs: past its deadline of 60 s"]


def test_the_fastest_pack_since_the_start_says_what_a_device_can_do(
    watchdog: Watchdog, expired: list[str]
) -> None:
    deadlines = PackDeadlines(watchdog, CONFIG)
    pack = [(16, 16)]
    deadlines.end(deadlines.begin(pack), 0.001)  # Blank.
    deadlines.start_over()
    deadlines.end(deadlines.begin(pack), 100.0)
    deadlines.end(deadlines.begin(pack), 10.0)
    deadlines.end(deadlines.begin(pack), 50.0)
    deadlines.begin(pack)
    watchdog.advance(199.0)
    assert expired == []
    watchdog.advance(2.0)
    assert expired == ["a pack of 1 segments hangs: past its deadline of 200 s"]


def test_a_pack_that_failed_says_nothing_of_the_speed(
    watchdog: Watchdog, expired: list[str]
) -> None:
    deadlines = PackDeadlines(watchdog, CONFIG)
    deadlines.end(deadlines.begin([(2, 2)]), None)
    deadlines.begin([(2, 2)])
    watchdog.advance(MOST_S - 1)
    assert expired == []


ITEMS: Items = [(1, 2, 2), (1, 4, 6), (3, 2, 4)]


def test_packs_that_are_done_or_fail_are_watched_no_more(
    watchdog: Watchdog, expired: list[str]
) -> None:
    device: Any = Device(fails_at_start=frozenset({(1, 0, 0)}), fails_later=frozenset({(2, 0, 0)}))
    packs = SharedPacks(device, budget=64, calls=1, deadlines=PackDeadlines(watchdog, CONFIG))
    for call in range(3):
        block = block_of(call, ITEMS)
        if call == 0:
            packs(block, range(len(block.segments)))
        else:
            with pytest.raises(ValueError, match="it fails"):
                packs(block, range(len(block.segments)))
    watchdog.advance(2 * MOST_S)
    assert expired == []


def test_a_pack_that_hangs_is_found(watchdog: Watchdog, expired: list[str]) -> None:
    device: Any = Device()
    device.gate.clear()
    packs = SharedPacks(device, budget=64, calls=1, deadlines=PackDeadlines(watchdog, CONFIG))
    block = block_of(0, ITEMS)
    call = threading.Thread(target=packs, args=(block, range(len(block.segments))), daemon=True)
    call.start()
    while not device.packs:
        time.sleep(0.01)
    watchdog.advance(MOST_S + 1)
    device.gate.set()
    call.join(60)
    assert expired == ["a pack of 5 segments hangs: past its deadline of 600 s"]
