"""How long packs keep their device."""

from __future__ import annotations

import pytest
import torch

from encoder import ceiling_flop_s, pack_time
from encoder.pack_time import PackSpan

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_on_a_cpu_a_pack_takes_from_its_beginning_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([10.0, 12.5])
    monkeypatch.setattr(pack_time.time, "perf_counter", lambda: next(seconds))
    span = PackSpan("cpu")
    span.end()
    assert span.seconds == 2.5


def test_a_cpu_has_no_ceiling_here() -> None:
    assert ceiling_flop_s("cpu", torch.float32) == 0.0


def failing(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Tensors cannot be made."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(pack_time.torch, "randn", fail)


@pytest.mark.parametrize("message", ["CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED when"])
def test_without_memory_for_it_there_is_no_ceiling(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    failing(monkeypatch, message)
    assert ceiling_flop_s("cuda", torch.bfloat16) == 0.0


def test_a_device_that_fails_at_its_ceiling_is_not_one_without_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing(monkeypatch, "CUDA error: an illegal memory access")
    with pytest.raises(RuntimeError, match="CUDA error"):
        ceiling_flop_s("cuda", torch.bfloat16)


@needs_gpu
def test_on_a_gpu_two_packs_in_a_row_take_what_both_take_together() -> None:
    side = torch.randn(4096, 4096, device="cuda")
    torch.mm(side, side)

    def work() -> PackSpan:
        span = PackSpan("cuda")
        for _ in range(20):
            torch.mm(side, side)
        span.end()
        return span

    torch.cuda.synchronize()
    both = PackSpan("cuda")
    first, second = work(), work()
    both.end()
    torch.cuda.synchronize()
    assert first.seconds + second.seconds == pytest.approx(both.seconds, rel=0.05)


@needs_gpu
def test_the_ceiling_is_that_of_a_product_that_takes_long() -> None:
    side = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    ceiling = ceiling_flop_s("cuda", torch.bfloat16)
    span = PackSpan("cuda")
    for _ in range(20):
        torch.mm(side, side)
    span.end()
    torch.cuda.synchronize()
    assert 0.3 * ceiling < 20 * 2 * 4096**3 / span.seconds < 1.3 * ceiling
