"""Packs as a run's actors run them: a full one against its segments alone, and two in flight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from encoder import Glm4vVisionConfig, Glm4vVisionModel, PackResults, PackRunner
from encoder.self_check import max_error
from pipeline.doctor.finding import Finding, Result
from pipeline.doctor.options import Options
from pipeline.doctor.steps.corpus import Grid, make_levels, num_patches, web_grids
from pipeline.doctor.steps.tower import device_of, make_tower, rounding_bound

Levels = list[npt.NDArray[np.uint8]]
Sizes = list[tuple[int, int]]

# A pack of the default budget: 16,384 tokens of four patches on a GPU.
PACK_PATCHES = {"cuda": 65_536, "cpu": 4096}
_MEDIAN = {"cuda": 2520, "cpu": 1500}
_LARGEST = {"cuda": 16_384, "cpu": 4096}
# Segments of a pack that are run alone.
_ALONE = 24
# A token goes through each block, and through embedding, downsampling and merger.
_OTHER_ROUNDINGS = 3


def check(options: Options) -> Iterator[Finding]:
    """Both checks, with the tower of the options."""
    device = device_of(options)
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = make_tower(options, device)
    yield judge("pack", pack_error(model, device), model, "a full pack against its segments alone")
    figure = "two packs in flight, their buffers overwritten"
    yield judge("in flight", flight_error(model, device), model, figure)


def pack_error(model: Glm4vVisionModel, device: torch.device, patches: int | None = None) -> float:
    """Runs a full pack of web photos, and its segments alone.

    Args:
        model: On the device.
        device: Where.
        patches: Of the pack; None takes a run's default.

    Returns:
        The largest difference of a segment's vector, relative to its norm; NaN where one is not
        finite.
    """
    runner = _runner(model, device)
    levels, sizes = stills(model.config, web_mix(device, patches))
    whole = run_pack(runner, levels, sizes)
    some = np.unique(np.linspace(0, len(sizes) - 1, _ALONE).astype(int)).tolist()
    alone = torch.cat([run_pack(runner, [levels[at]], [sizes[at]]) for at in some])
    return max_error(whole[some], alone)


def flight_error(model: Glm4vVisionModel, device: torch.device) -> float:
    """Starts two packs, overwrites each one's levels as soon as `start` returns, and waits.

    Returns:
        As `pack_error`, against the same packs run one after the other.
    """
    runner = _runner(model, device)
    packs = [stills(model.config, web_mix(device)), stills(model.config, _smaller(device))]
    expected = torch.cat([run_pack(runner, levels, sizes) for levels, sizes in packs])
    under_way = []
    for levels, sizes in packs:
        under_way += runner.start(levels, sizes)
        for own in levels:
            own.fill(255)  # `start` has returned: they are ours again.
    return max_error(torch.cat([vectors_of(results) for _, results in under_way]), expected)


def judge(step: str, error: float, model: Glm4vVisionModel, what: str) -> Finding:
    """Compares a difference of vectors with what rounding explains."""
    dtype = model.downsample.weight.dtype
    bound = rounding_bound(dtype, model.config.depth + _OTHER_ROUNDINGS)
    right = error <= bound  # NaN is not.
    result: Result = "ok" if right else "broken"
    return Finding(
        step=step,
        result=result,
        figure=f"{what}: {error:.1g} apart, bound {bound:.1g}",
        advice="" if right else "do not embed here: another torch or driver may cure it",
        values={"error": error if math.isfinite(error) else None, "bound": bound},
    )


def web_mix(device: torch.device, patches: int | None = None) -> list[Grid]:
    """Stills of a web corpus that fill a pack."""
    kind = device.type
    return web_grids(
        patches or PACK_PATCHES[kind], median=_MEDIAN[kind], merge=2, most=_LARGEST[kind]
    )


def stills(config: Glm4vVisionConfig, grids: list[Grid]) -> tuple[Levels, Sizes]:
    """The pack's levels and sizes, as `PackRunner.start` takes them."""
    sizes = [(height, width) for _, height, width in grids]
    levels_NP = make_levels(config, grids)
    assert len(levels_NP) == num_patches(grids)
    return [part.numpy() for part in torch.split(levels_NP, [h * w for h, w in sizes])], sizes


def run_pack(runner: PackRunner, levels: Levels, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Vectors of a pack's segments, float32 [S, D]."""
    return torch.cat([vectors_of(results) for _, results in runner.start(levels, sizes)])


def vectors_of(results: PackResults | None) -> torch.Tensor:
    """Waits for a part's vectors.

    Raises:
        RuntimeError: Its segment did not fit in memory.
    """
    if results is None:
        raise RuntimeError("CUDA out of memory: a segment did not fit")
    results.wait()
    return results.vectors


def _smaller(device: torch.device) -> list[Grid]:
    """A second pack of another length, so that neither passes for the other."""
    return [(1, 16, 16)] * (4 if device.type == "cpu" else 64)


def _runner(model: Glm4vVisionModel, device: torch.device) -> PackRunner:
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    return PackRunner(model, device=kind)
