"""What a GPU can do by itself: matrix products, copies, kernels of attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from benchmarks.report import spread
from encoder import Glm4vVisionConfig
from encoder.attention import Segments, attend
from pipeline.doctor.steps.poison import poisoned

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Columns and width of the large tower's products, and a square one.
_PRODUCTS = [(1536, 4608), (1536, 4096), (4096, 1536), (4096, 13_696), (8192, 8192)]
_TOY_PRODUCTS = [(64, 32)]
_SDPA = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_TURNS = 5


def synchronize() -> None:
    """Waits until the GPU has done what was started."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], runs: int) -> float:
    """Wall time of a run, of several that follow one another."""
    synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        run()
    synchronize()
    return (time.perf_counter() - start) / runs


def products(rows: int, rounds: int) -> Iterator[dict[str, Any]]:
    """TFLOP/s of bf16 matrix products by shape; the best is the ceiling."""
    for columns, width in _PRODUCTS if DEVICE.type == "cuda" else _TOY_PRODUCTS:
        x = torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16)
        weight = torch.randn(width, columns, device=DEVICE, dtype=torch.bfloat16)
        multiply = partial(F.linear, x, weight)
        seconds(multiply, 3)
        tflop = 2 * rows * columns * width / 1e12
        speeds = [tflop / seconds(multiply, 20) for _ in range(rounds)]
        yield {"shape": [rows, columns, width], "tflop_per_s": spread(speeds)}


def copies(size_bytes: int, rounds: int) -> dict[str, Any]:
    """GB/s from pinned memory to the GPU and back."""
    on_host = torch.zeros(size_bytes, dtype=torch.uint8, pin_memory=DEVICE.type == "cuda")
    on_device = torch.zeros(size_bytes, dtype=torch.uint8, device=DEVICE)
    ways = {
        "to_device_gb_per_s": partial(on_device.copy_, on_host, non_blocking=True),
        "to_host_gb_per_s": partial(on_host.copy_, on_device, non_blocking=True),
    }
    return {
        name: spread(size_bytes / seconds(copy, 5) / 1e9 for _ in range(rounds))
        for name, copy in ways.items()
    }


def kernels(
    config: Glm4vVisionConfig, lengths: list[int], patches: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """TFLOP/s of attention by length: as the tower chooses, by varlen, and by each SDPA kernel."""
    for length in lengths:
        count = max(1, patches // length)
        shape = (count * length, 3, config.num_heads, config.head_dim)
        qkv = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).unbind(1)
        segments = Segments.of([length] * count, DEVICE)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "tower": partial(attend, *qkv, segments),
            "varlen": partial(_varlen, qkv, segments),
        }
        ways |= {name: partial(_sdpa, qkv, length, kernel) for name, kernel in _SDPA.items()}
        exact = attend(*(x.float() for x in qkv), segments)
        tflop = 4 * count * length**2 * config.hidden_size / 1e12
        found = {name: _measure(run, exact, tflop) for name, run in ways.items()}
        right = all(way.get("right", True) for way in found.values())
        yield "attention", {"length": length, "segments": count, "right": right} | found


def _varlen(qkv: tuple[torch.Tensor, ...], segments: Segments) -> torch.Tensor:
    offsets, length = segments.offsets, segments.lengths[0]
    out = varlen_attn(*qkv, offsets, offsets, length, length)
    assert isinstance(out, torch.Tensor)
    return out


def _sdpa(qkv: tuple[torch.Tensor, ...], length: int, kernel: SDPBackend) -> torch.Tensor:
    batches = (x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in qkv)
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(*batches).transpose(1, 2).flatten(0, 1)


def _measure(run: Callable[[], torch.Tensor], exact: torch.Tensor, tflop: float) -> dict[str, Any]:
    try:
        run()
    except (RuntimeError, NotImplementedError) as error:
        return {"refuses": str(error).split("\n", maxsplit=1)[0][:120]}
    with poisoned(DEVICE):
        error = float((run().float() - exact).norm() / exact.norm())
    runs = max(1, round(0.05 / seconds(run, 3))) if DEVICE.type == "cuda" else 1
    speeds = [tflop / seconds(run, runs) for _ in range(_TURNS)]
    return {"tflop_per_s": spread(speeds), "error": round(error, 5), "right": error < 0.02}
