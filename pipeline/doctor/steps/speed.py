"""How fast a device is: its ceiling, copies, and patches a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from encoder import Glm4vVisionModel, ceiling_flop_s, forward_flop
from pipeline.doctor.finding import Finding, first_line
from pipeline.doctor.options import Options
from pipeline.doctor.steps.corpus import Grid, make_levels, num_patches
from pipeline.doctor.steps.packs import PACK_PATCHES, web_mix
from pipeline.doctor.steps.tower import describe_dtype, device_of, make_tower

_COPIED_BYTES = 2**28
_MEASURED_S = 1.0
_SIDES = (16, 32)
# Less of the ceiling than this points at a device that others use, or that is throttled.
_LEAST_SHARE = 0.2


def check(options: Options) -> Iterator[Finding]:
    """All figures, each as soon as it is there; compiling comes last, since it may take long."""
    device = device_of(options)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = make_tower(options, device)
    ceiling = 0.0
    if device.type == "cuda":
        dtype = model.downsample.weight.dtype
        ceiling = ceiling_flop_s("cuda", dtype)
        figure = f"{ceiling / 1e12:.0f} TFLOP/s of matrix products in {describe_dtype(dtype)}"
        yield Finding(
            step="ceiling",
            result="ok" if ceiling else "warning",
            figure=figure if ceiling else "no memory for the products that measure it",
            values={"ceiling_flop_s": ceiling},
        )
        yield copies()
    packs = {f"{side**2:,}": [(1, side, side)] * _count(device, side) for side in _SIDES}
    packs["web mix"] = web_mix(device)
    yield patches(model, device, packs, ceiling, "speed")
    if device.type == "cuda":
        yield from _compiled(model, device, packs, ceiling)


def patches(
    model: Glm4vVisionModel,
    device: torch.device,
    packs: dict[str, list[Grid]],
    ceiling: float,
    step: str,
) -> Finding:
    """Patches a second of each pack, and the share of the ceiling."""
    values: dict[str, float] = {}
    shares: list[float] = []
    for name, grids in packs.items():
        levels_NP = make_levels(model.config, grids).to(device)
        with torch.inference_mode():
            taken_s = seconds(partial(model, levels_NP, grids), device)
        values[f"patches_per_s_{_key(name)}"] = num_patches(grids) / taken_s
        if ceiling:
            share = forward_flop(model.config, grids) / taken_s / ceiling
            values[f"share_of_ceiling_{_key(name)}"] = share
            shares.append(share)
    rates = (value for name, value in values.items() if name.startswith("patches"))
    named = ", ".join(f"{rate:,.0f} at {name}" for name, rate in zip(packs, rates, strict=True))
    figure = f"patches/s by patches a segment: {named}"
    if shares:
        figure += f"; {min(shares):.0%} to {max(shares):.0%} of the ceiling"
    slow = bool(shares) and max(shares) < _LEAST_SHARE
    advice = "do others use it? is it throttled (nvidia-smi -q -d PERFORMANCE)?" if slow else ""
    return Finding(
        step=step,
        result="warning" if slow else "ok",
        figure=figure,
        advice=advice,
        values=values,
    )


def copies() -> Finding:
    """GB/s from pinned memory to the GPU and back."""
    device = torch.device("cuda")
    on_host = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    ways = {
        "to_device_bytes_per_s": partial(on_device.copy_, on_host, non_blocking=True),
        "to_host_bytes_per_s": partial(on_host.copy_, on_device, non_blocking=True),
    }
    values = {name: _COPIED_BYTES / seconds(way, device) for name, way in ways.items()}
    there, back = (rate / 1e9 for rate in values.values())
    figure = f"{there:.1f} GB/s to the GPU, {back:.1f} GB/s back"
    return Finding(step="copies", result="ok", figure=figure, values=values)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of a run, of several that follow one another for a second, after a first."""

    def timed(runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / runs

    timed(1)
    once_s = timed(1)
    return timed(max(1, round(_MEASURED_S / once_s)))


def _key(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def _count(device: torch.device, side: int) -> int:
    return max(1, PACK_PATCHES[device.type] // side**2)


def _compiled(
    model: Glm4vVisionModel, device: torch.device, packs: dict[str, list[Grid]], ceiling: float
) -> Iterator[Finding]:
    from encoder import CompileError  # noqa: PLC0415

    start = time.perf_counter()
    try:
        model.compile_blocks()
    except CompileError as error:
        advice = "see the compiler and kernel cache steps; runs go on uncompiled, slower"
        figure = f"not compiled: {first_line(error)}"
        yield Finding(step="compiled", result="warning", figure=figure, advice=advice)
        return
    torch.cuda.synchronize()
    taken_s = time.perf_counter() - start
    found = patches(model, device, packs, ceiling, "compiled")
    yield Finding(
        step=found.step,
        result=found.result,
        figure=f"{found.figure} (after {taken_s:.0f} s)",
        advice=found.advice,
        values={**found.values, "compile_s": taken_s},
    )
