"""Packs in flight on a simulated GPU, which works as late or as early as CUDA may."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import PackResults, PackRunner
from tests.support.simulated_cuda import simulate
from tests.support.simulated_gpu import Block, Gpu
from tests.support.simulated_streams import (
    Event,
    Order,
    Stream,
    any_order,
    default_stream_first,
    earliest,
    latest,
    side_streams_first,
)
from tests.support.towers import SMALL, random_model

MODEL = random_model(replace(SMALL, depth=1))
Sizes = list[tuple[int, int]]
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
PACKS: list[Sizes] = [[(4, 6), (4, 4)], [(4, 4)], [(2, 2), (2, 2)]]


def levels_of(sizes: Sizes, seed: int) -> list[np.ndarray]:
    """Stills and, last, a segment of a clip."""
    random = np.random.default_rng(seed)
    kinds = [588] * (len(sizes) - 1) + [1176]
    return [
        random.integers(0, 256, (h * w, values), np.uint8)
        for (h, w), values in zip(sizes, kinds, strict=True)
    ]


def outcome(parts: list[tuple[slice, PackResults | None]]) -> Outcome:
    ((_, results),) = parts
    assert results is not None
    results.wait()
    assert results.seconds > 0
    # What comes later in the pinned memory must not count.
    return results.vectors.clone(), results.tokens.clone(), results.finite.clone()


def on_cpu(packs: list[Sizes], **options: Any) -> list[Outcome]:
    runner = PackRunner(MODEL, device="cpu", keep_tokens=True, **options)
    return [outcome(runner.start(levels_of(sizes, n), sizes)) for n, sizes in enumerate(packs)]


def on_gpu(
    packs: list[Sizes],
    order: Order,
    *,
    ahead: int = 1,
    runner: type[PackRunner] = PackRunner,
    **options: Any,
) -> list[Outcome]:
    """Runs packs with up to `ahead` behind the one that is waited for, whose levels are spoiled
    as soon as they are started.
    """
    found, under_way = [], deque[Any]()
    with pytest.MonkeyPatch.context() as patched:
        cuda = simulate(Gpu(order=order), patched)
        model = cuda.put(MODEL)
        with cuda:
            packed = runner(model, device="cuda", keep_tokens=True, **options)
            for n, sizes in enumerate(packs):
                levels = levels_of(sizes, n)
                under_way.append(packed.start(levels, sizes))
                for own in levels:
                    own[:] = 0
                if len(under_way) > ahead:
                    found.append(outcome(under_way.popleft()))
        return [*found, *map(outcome, under_way)]


def same(ours: list[Outcome], theirs: list[Outcome]) -> bool:
    return all(
        torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5)
        for own, their in zip(ours, theirs, strict=True)
        for a, b in zip(own, their, strict=True)
    )


@pytest.mark.parametrize(
    ("order", "pool"),
    [
        (latest, "mean"),
        (earliest, "max"),
        (side_streams_first, "max"),
        (default_stream_first, "mean"),
        (any_order(0), "max"),
    ],
)
def test_packs_in_flight_are_those_of_a_cpu_in_any_order_of_work(order: Order, pool: Any) -> None:
    assert same(on_gpu(PACKS, order, pool=pool), on_cpu(PACKS, pool=pool))


side = st.sampled_from([2, 4, 6])


@settings(deadline=None, max_examples=6)
@given(
    st.lists(st.lists(st.tuples(side, side), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(0, 2**16),
    st.integers(0, 3),
)
def test_any_packs_in_any_order_of_work(packs: list[Sizes], seed: int, ahead: int) -> None:
    assert same(on_gpu(packs, any_order(seed), ahead=ahead), on_cpu(packs))


class ReusesItsBuffer(PackRunner):
    """Lays out each pack where the one before it lay, whether it was copied or not."""

    def _send(self, segments: list[Any]) -> torch.Tensor:
        whole = np.concatenate(segments)
        held: dict[Any, torch.Tensor] = self.__dict__.setdefault("_held", {})
        buffer = held.setdefault(
            whole.shape, torch.empty(whole.shape, dtype=torch.uint8, pin_memory=True)
        )
        buffer.numpy()[:] = whole
        return buffer.to("cuda", non_blocking=True)


def nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("part", "call", "order"),
    [
        (Stream, "wait_stream", latest),
        (Stream, "wait_stream", default_stream_first),
        (Block, "record_stream", side_streams_first),
        (Event, "synchronize", latest),
    ],
)
def test_a_wait_that_is_left_out_is_found(
    monkeypatch: pytest.MonkeyPatch, part: type, call: str, order: Order
) -> None:
    monkeypatch.setattr(part, call, nothing)
    # No time is known of a pack that is not done.
    monkeypatch.setattr(PackResults, "seconds", 1.0)
    assert not same(on_gpu(PACKS, order), on_cpu(PACKS))


def test_a_buffer_that_is_reused_before_its_event_is_found() -> None:
    packs: list[Sizes] = [[(4, 4)], [(4, 4)]]
    assert not same(on_gpu(packs, latest, runner=ReusesItsBuffer), on_cpu(packs))
    assert same(on_gpu(packs, earliest, runner=ReusesItsBuffer), on_cpu(packs))


def test_a_pack_that_is_not_done_has_no_time() -> None:
    with pytest.MonkeyPatch.context() as patch:
        cuda = simulate(Gpu(), patch)
        model = cuda.put(MODEL)
        with cuda:
            runner = PackRunner(model, device="cuda")
            ((_, results),) = runner.start(levels_of([(2, 2)], 0), [(2, 2)])
        assert results is not None
        assert results.vectors.isnan().all()
        with pytest.raises(RuntimeError, match="not ready"):
            _ = results.seconds
        runner.synchronize()
        assert results.seconds > 0
        assert not results.vectors.isnan().any()
