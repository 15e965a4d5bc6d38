"""Calls that share packs on a simulated GPU, which fails at each of its calls in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import PackResults, PackRunner, is_device_error
from pipeline.block import Block, Levels
from pipeline.shared_packs import SharedPacks
from tests.support.simulated_cuda import SimulatedCuda, simulate
from tests.support.simulated_gpu import Gpu
from tests.support.simulated_streams import Fault, Kind, any_order
from tests.support.towers import SMALL, random_model

CONFIG = replace(SMALL, depth=1)
MODEL = random_model(CONFIG)
Grids = list[tuple[int, int, int]]
# One pack each of a budget of 4 tokens.
TWO: Grids = [(1, 2, 4), (1, 2, 2)]
SMALLEST: Grids = [(1, 2, 4)]
BUDGET = 4
WITHOUT_WORK = {"pin", "record a stream", "synchronize an event", "elapsed time"}
TAKES_NO_MEMORY = {"synchronize an event", "elapsed time"}
NO_ROOM = "one segment does not fit in memory"


def block_of(seed: int, grids: Grids) -> Block:
    random = np.random.default_rng(seed)
    values = [588 * min(t, 2) for t, _, _ in grids]
    return Block(
        names=[f"item {n}" for n in range(len(grids))],
        grids=[list(grid) for grid in grids],
        patches=[
            random.integers(0, 256, t * h * w * width, np.uint8)
            for (t, h, w), width in zip(grids, values, strict=True)
        ],
        width=CONFIG.out_hidden_size,
        merged=4,
        keeps_tokens=True,
    )


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For operations this small, more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def expected() -> Callable[[int, tuple[tuple[int, int, int], ...]], Block]:
    """Returns blocks encoded on the CPU, one segment at a time."""
    found: dict[Any, Block] = {}
    runner = PackRunner(MODEL, device="cpu", keep_tokens=True)

    def encode(seed: int, grids: tuple[tuple[int, int, int], ...]) -> Block:
        if (seed, grids) not in found:
            block = found[seed, grids] = block_of(seed, list(grids))
            for index in range(len(block.segments)):
                SharedPacks(runner, budget=1, calls=1)(block, [index])
        return found[seed, grids]

    return encode


@dataclass
class OnDevice:
    """A runner whose packs are started, in whatever thread, on a simulated device."""

    cuda: SimulatedCuda
    runner: PackRunner
    packs: list[int] = field(default_factory=list)

    def start(
        self, levels: list[Levels], sizes: list[tuple[int, int]]
    ) -> list[tuple[slice, PackResults | None]]:
        self.packs.append(len(sizes))
        with self.cuda:
            return self.runner.start(levels, sizes)

    def synchronize(self) -> None:
        self.runner.synchronize()


@contextmanager
def shared_packs(
    gpu: Gpu, budget: int = BUDGET, calls: int = 1, fault: Fault | None = None
) -> Iterator[SharedPacks]:
    with pytest.MonkeyPatch.context() as patch:
        cuda = simulate(gpu, patch)
        model = cuda.put(MODEL)
        runner = PackRunner(model, device="cuda", keep_tokens=True)
        gpu.begin(fault)
        yield SharedPacks(OnDevice(cuda, runner), budget=budget, calls=calls)  # type: ignore[arg-type]
        gpu.release()


def assert_right(block: Block, whole: Block, lost: bool = False) -> None:
    """Every item has its own results, or has failed for want of memory, if it may."""
    failed = {*block.failures}
    assert {failure.message for failure in block.failures.values()} <= {NO_ROOM}
    assert lost or not failed
    kept, tokens = block.without(failed)
    _, whole_tokens = whole.without(failed)
    np.testing.assert_allclose(block.vectors[kept], whole.vectors[kept], rtol=0, atol=1e-5)
    np.testing.assert_allclose(tokens, whole_tokens, rtol=1e-3, atol=1e-5)
    assert block.finite.all()


def run(gpu: Gpu, whole: Block, grids: Grids, fault: Fault | None = None) -> Exception | None:
    """One call; its results are right, or it raises."""
    block = block_of(0, grids)
    with shared_packs(gpu, fault=fault) as packs:
        try:
            packs(block, range(len(block.segments)))
        except RuntimeError as error:
            return error
    assert_right(block, whole)
    return None


def calls_of(whole: Block, grids: Grids) -> list[str]:
    gpu = Gpu()
    assert run(gpu, whole, grids) is None
    return gpu.calls


def test_a_call_waits_for_its_packs_only(expected: Any) -> None:
    calls = calls_of(expected(0, tuple(SMALLEST)), SMALLEST)
    assert len(calls) > 80
    waits = [name for name in calls if "synchronize" in name]
    assert waits == ["synchronize an event"]


@pytest.mark.parametrize("grids", [pytest.param(SMALLEST, marks=pytest.mark.whole), TWO])
def test_memory_that_runs_out_at_any_call_costs_no_item(expected: Any, grids: Grids) -> None:
    """At every call of a pack that is tried again; once of each kind in one that is halved."""
    whole = expected(0, tuple(grids))
    calls = calls_of(whole, grids)
    for at, name in enumerate(calls):
        if name in TAKES_NO_MEMORY or (grids == TWO and name in calls[:at]):
            continue
        gpu = Gpu(order=any_order(at))
        error = run(gpu, whole, grids, Fault(at, "out of memory"))
        assert error is None, (at, name)
        assert "empty cache" in gpu.calls, (at, name)


def test_an_item_that_never_fits_fails_and_its_neighbours_do_not(expected: Any) -> None:
    grids: Grids = [(1, 2, 2), (1, 24, 24), (1, 2, 4)]
    block, gpu = block_of(0, grids), Gpu()
    with shared_packs(gpu, budget=200) as packs:
        gpu.free_bytes = 10**6  # Of the large item's patches, as floats, there are 1.4 MB.
        packs(block, range(3))
    assert sorted(block.failures) == [1]
    assert_right(block, expected(0, tuple(grids)), lost=True)


@pytest.mark.parametrize("kind", ["sticky", pytest.param("late", marks=pytest.mark.whole)])
def test_a_device_that_breaks_at_any_call_gives_an_error_and_no_result(
    expected: Any, kind: Kind
) -> None:
    whole = expected(0, tuple(SMALLEST))
    calls = calls_of(whole, SMALLEST)
    for at, name in enumerate(calls):
        error = run(Gpu(order=any_order(at)), whole, SMALLEST, Fault(at, kind))
        # A call without work has none that could break.
        assert error is not None or (kind == "late" and name in WITHOUT_WORK), (at, name)
        assert error is None or is_device_error(error), (at, name)


@pytest.mark.whole
def test_what_hangs_holds_up_whoever_waits_for_it_and_nobody_else(expected: Any) -> None:
    whole = expected(0, tuple(SMALLEST))
    for at, name in enumerate(calls_of(whole, SMALLEST)):
        gpu = Gpu(order=any_order(at))
        found: list[Exception | None] = []
        work = lambda at=at, gpu=gpu, found=found: found.append(  # noqa: E731
            run(gpu, whole, SMALLEST, Fault(at, "hang"))
        )
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive() and not gpu.hanging.wait(0.001):
            pass
        assert gpu.hanging.is_set() or name in WITHOUT_WORK, (at, name)
        if gpu.hanging.is_set():
            assert not found
            assert gpu.calls[-1] == "synchronize an event", (at, name)
            gpu.release()
        thread.join(30)
        (error,) = found
        assert (error is not None) == gpu.hanging.is_set()
        assert error is None or is_device_error(error)


def test_a_pack_that_hangs_corrupts_no_other_calls_results(expected: Any) -> None:
    """Three calls, a pack each: that of the second hangs, and the third's is behind it."""
    grids = [SMALLEST, TWO, SMALLEST]
    blocks = [block_of(call, own) for call, own in enumerate(grids)]
    alone = len(calls_of(expected(0, tuple(SMALLEST)), SMALLEST))
    gpu, raised = Gpu(), {}
    with shared_packs(gpu, calls=2, fault=Fault(alone + 40, "hang")) as packs:

        def call(n: int) -> None:
            try:
                packs(blocks[n], range(len(blocks[n].segments)))
            except RuntimeError as error:
                raised[n] = error

        call(0)
        threads = [threading.Thread(target=call, args=(n,), daemon=True) for n in (1, 2)]
        threads[0].start()
        assert gpu.hanging.wait(30)
        threads[1].start()
        threads[1].join(0.2)
        assert all(thread.is_alive() for thread in threads) and not raised
        gpu.release()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert_right(blocks[0], expected(0, tuple(SMALLEST)))
    assert sorted(raised) == [1, 2]
    assert all(is_device_error(error) for error in raised.values())
    for block in blocks[1:]:
        assert not block.vectors.any() and not block.tokens.any() and not block.failures


grids_of_a_call = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=12)
@given(
    st.lists(grids_of_a_call, min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(0, 2**16),
    st.sampled_from([2**40, 2**22, 2**20, 2**19]),
)
def test_calls_at_once_come_back_right_under_any_order_and_memory(
    expected: Any, calls: list[Grids], budget: int, seed: int, memory: int
) -> None:
    gpu = Gpu(order=any_order(seed))
    blocks = [block_of(call, grids) for call, grids in enumerate(calls)]
    with shared_packs(gpu, budget=budget, calls=len(blocks)) as packs:
        gpu.free_bytes = memory
        threads = [
            threading.Thread(target=packs, args=(block, range(len(block.segments))), daemon=True)
            for block in blocks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    for call, (block, grids) in enumerate(zip(blocks, calls, strict=True)):
        assert_right(block, expected(call, tuple(grids)), lost=memory < 2**40)
