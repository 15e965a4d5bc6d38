"""Calls that share packs: each gets its own results, whoever runs them and whatever fails."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import next_pack
from pipeline.block import Block
from pipeline.shared_packs import SharedPacks
from tests.support.pack_device import Device, Items, Name, assert_right, block_of

calls_of_items = st.lists(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])),
        max_size=4,
    ),
    min_size=1,
    max_size=6,
)


def together(*work: Callable[[], None]) -> None:
    """Does it all in threads, which must come to an end."""
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def encode_all(
    device: Device, calls: list[Items], budget: int, threads: int
) -> tuple[list[Block], dict[int, Exception]]:
    """All calls, so many at once; returns their blocks, and what they raised."""
    packs = SharedPacks(device, budget=budget, calls=threads)  # type: ignore[arg-type]
    blocks = [block_of(call, items) for call, items in enumerate(calls)]
    left, raised = iter(range(len(calls))), {}
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                call = next(left, None)
            if call is None:
                return
            try:
                packs(blocks[call], range(len(blocks[call].segments)))
            except ValueError as error:
                raised[call] = error

    together(*[work] * threads)
    return blocks, raised


def names_of(calls: list[Items]) -> list[Name]:
    return [
        (c, n, s)
        for c, items in enumerate(calls)
        for n, (t, _, _) in enumerate(items)
        for s in range(t)
    ]


@settings(deadline=None)
@given(calls_of_items, st.integers(1, 20), st.integers(1, 4), st.sampled_from([0, 1e-5]))
def test_every_segment_runs_once_within_the_budget_and_comes_back_to_its_call(
    calls: list[Items], budget: int, threads: int, token_s: float
) -> None:
    device = Device(token_s)
    blocks, raised = encode_all(device, calls, budget, threads)
    assert not raised
    assert sorted(name for pack in device.packs for name in pack) == names_of(calls)
    for lengths, kinds in zip(device.lengths, device.kinds, strict=True):
        assert len(lengths) == 1 or sum(lengths) <= budget
        # Two runs of a kind at most, each from long to short.
        order = [(kind, -length) for kind, length in zip(kinds, lengths, strict=True)]
        assert order == sorted(order)
    assert device.most_under_way <= 2
    for call, (block, items) in enumerate(zip(blocks, calls, strict=True)):
        assert_right(block, call, items)
    tokens = sum(map(sum, device.lengths))
    assert sum(block.counts.tokens for block in blocks) == tokens
    # Told by every pack once, however many calls share it: an operation a token, on this device.
    assert sum(block.counts.flop for block in blocks) == tokens
    assert sum(block.counts.seconds for block in blocks) == pytest.approx(tokens * token_s)
    if threads > 1:
        full = sum(max(sum(lengths), budget) for lengths in device.lengths)
        assert sum(block.counts.capacity for block in blocks) == full


@settings(deadline=None)
@given(calls_of_items, st.integers(1, 20), st.integers(1, 4), st.data())
def test_an_error_is_that_of_the_calls_with_a_segment_in_its_pack(
    calls: list[Items], budget: int, threads: int, data: st.DataObject
) -> None:
    names = names_of(calls) or [(99, 0, 0)]
    bad = [frozenset(data.draw(st.sets(st.sampled_from(names), max_size=2))) for _ in range(3)]
    device = Device(fails_at_start=bad[0], fails_later=bad[1], fails_when_asked=bad[2])
    blocks, raised = encode_all(device, calls, budget, threads)
    failed = [pack for pack in device.packs if frozenset.union(*bad) & {*pack}]
    assert {*raised} == {call for pack in failed for call, _, _ in pack}
    for call, (block, items) in enumerate(zip(blocks, calls, strict=True)):
        if call not in raised:
            assert_right(block, call, items)
    assert max(Counter(name for pack in device.packs for name in pack).values(), default=1) == 1
    assert device.under_way == 0


@settings(deadline=None)
@given(calls_of_items, st.integers(1, 20), st.integers(1, 4), st.data())
def test_what_does_not_fit_in_memory_fails_its_item_alone(
    calls: list[Items], budget: int, threads: int, data: st.DataObject
) -> None:
    names = names_of(calls) or [(99, 0, 0)]
    lost = frozenset(data.draw(st.sets(st.sampled_from(names), max_size=4)))
    blocks, raised = encode_all(Device(too_large=lost), calls, budget, threads)
    assert not raised
    for call, (block, items) in enumerate(zip(blocks, calls, strict=True)):
        failed = {n for c, n, _ in lost if c == call}
        assert_right(block, call, items, failed)


def test_concurrent_calls_fill_packs_that_none_could_fill_by_itself() -> None:
    random = np.random.default_rng(0)
    sides = 2 * random.integers(1, 12, (250, 3, 2))
    calls = [[(1, int(h), int(w)) for h, w in own] for own in sides]
    blocks, _ = encode_all(Device(token_s=1e-5), calls, budget=500, threads=24)
    tokens = sum(block.counts.tokens for block in blocks)
    assert max(block.counts.tokens for block in blocks) < 400
    # All but the first packs and the last, for which there is not enough.
    assert tokens / sum(block.counts.capacity for block in blocks) > 0.9


class Line:
    """Calls that come one after the other while a device is held up."""

    def __init__(self, budget: int, calls: int) -> None:
        self.device = Device()
        self.device.gate.clear()
        self.packs = SharedPacks(self.device, budget=budget, calls=calls)  # type: ignore[arg-type]
        self.threads: list[threading.Thread] = []

    def come(self, items: Items) -> None:
        """One more call; returns once it waits, or has started what it could."""
        block = block_of(len(self.threads), items)
        work = lambda: self.packs(block, range(len(block.segments)))  # noqa: E731
        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()
        end_s = time.monotonic() + 10
        while not (len(self.packs._calls) == len(self.threads) and not self.packs._starting):
            assert time.monotonic() < end_s
            time.sleep(0.001)
        time.sleep(0.01)

    def go(self) -> list[list[Name]]:
        self.device.gate.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        return self.device.packs


def test_the_oldest_call_goes_first_and_younger_ones_fill_up() -> None:
    line = Line(budget=10, calls=9)
    # Of 4 tokens each: two fit in a pack, which leaves room for 2.
    line.come([(8, 4, 4)])
    line.come([(1, 4, 6), (1, 2, 2)])
    line.come([(1, 2, 4), (1, 2, 2)])
    assert line.go() == [
        [(0, 0, 0), (0, 0, 1)],
        [(0, 0, 2), (0, 0, 3)],
        [(1, 1, 0), (2, 1, 0), (0, 0, 4), (0, 0, 5)],
        [(0, 0, 6), (0, 0, 7), (2, 0, 0)],
        [(1, 0, 0)],
    ]


def test_the_packs_of_one_call_are_filled_longest_first() -> None:
    device, block = Device(), block_of(0, [(1, 2, 4), (1, 4, 6), (1, 4, 4), (1, 4, 8)])
    together(lambda: SharedPacks(device, budget=10, calls=1)(block, range(4)))  # type: ignore[arg-type]
    assert [sorted(lengths) for lengths in device.lengths] == [[2, 8], [4, 6]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=30),
    st.integers(1, 100),
)
def test_packs_are_those_of_next_pack(sides: list[tuple[int, int]], budget: int) -> None:
    device = Device()
    block = block_of(0, [(1, 2 * height, 2 * width) for height, width in sides])
    SharedPacks(device, budget=budget, calls=1)(block, range(len(sides)))  # type: ignore[arg-type]
    left = sorted((height * width for height, width in sides), reverse=True)
    for lengths in device.lengths:
        taken = next_pack(left, budget)
        assert sorted(lengths) == sorted(left[at] for at in taken)
        left = [length for at, length in enumerate(left) if at not in taken]
    assert left == []


def test_a_busy_device_waits_for_a_full_pack_while_more_may_come() -> None:
    line = Line(budget=10, calls=4)
    line.come([(1, 4, 4)])  # Nothing else to do.
    line.come([(1, 4, 4)])
    line.come([(1, 4, 4)])
    assert [len(pack) for pack in line.device.packs] == [1]
    line.come([(1, 2, 2)])  # As many as may come are here.
    assert [len(pack) for pack in line.device.packs] == [1, 3]
    assert len(line.go()) == 2


def test_a_full_pack_follows_on_at_once() -> None:
    line = Line(budget=8, calls=9)
    for _ in range(3):
        line.come([(1, 4, 4)])
    assert [len(pack) for pack in line.device.packs] == [1, 2]
    line.come([(2, 4, 4)])  # A device works on two packs at most.
    assert [len(pack) for pack in line.device.packs] == [1, 2]
    assert [len(pack) for pack in line.go()] == [1, 2, 2]


@settings(deadline=None, max_examples=50)
@given(calls_of_items, st.integers(1, 20), st.sets(st.integers(0, 5)))
def test_a_call_that_is_alone_has_the_device_to_itself(
    calls: list[Items], budget: int, lonely: set[int]
) -> None:
    device = Device(token_s=1e-5)
    packs = SharedPacks(device, budget=budget, calls=len(calls))  # type: ignore[arg-type]
    blocks = [block_of(call, items) for call, items in enumerate(calls)]

    def work(call: int) -> None:
        block, segments = blocks[call], range(len(blocks[call].segments))
        if call not in lonely:
            packs(block, segments)
            return
        with packs.alone():
            assert device.under_way == 0
            before = len(device.packs)
            for index in segments:  # One after the other, as suspected items are done.
                packs(block, [index])
            assert [[name] for name in names_of(calls) if name[0] == call] == device.packs[before:]
            assert device.under_way == 0

    together(*[lambda call=call: work(call) for call in range(len(calls))])
    for call, (block, items) in enumerate(zip(blocks, calls, strict=True)):
        assert_right(block, call, items)


def test_whoever_wants_to_be_alone_waits_for_what_is_under_way() -> None:
    line, alone = Line(budget=4, calls=1), threading.Event()
    line.come([(1, 4, 4)])

    def be_alone() -> None:
        with line.packs.alone():
            assert line.device.under_way == 0
            alone.set()

    thread = threading.Thread(target=be_alone, daemon=True)
    thread.start()
    assert not alone.wait(0.05)
    line.go()
    assert alone.wait(30)


def test_whoever_is_alone_gives_the_device_back_when_it_fails() -> None:
    packs = SharedPacks(Device(), budget=8, calls=2)  # type: ignore[arg-type]
    with pytest.raises(KeyError), packs.alone():
        raise KeyError
    block = block_of(0, [(1, 2, 2)])
    together(lambda: packs(block, [0]))
    assert_right(block, 0, [(1, 2, 2)])
