"""Packs run from the host's memory: how busy that keeps a GPU, and what happens short of memory."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu_parts import DEVICE, seconds, synchronize
from benchmarks.towers import Grid, make_levels, num_patches
from encoder import Glm4vVisionModel
from encoder.runner import PackResults, PackRunner

_PACKS = 8
# Of what a pack takes beside what is there before it.
_TOO_LITTLE = 0.6
Levels = list[npt.NDArray[np.uint8]]
Sizes = list[tuple[int, int]]


@torch.inference_mode()
def runs(model: Glm4vVisionModel, grids: list[Grid]) -> dict[str, Any]:
    """A pack of stills again and again, as actors run them, against the tower alone."""
    device: Literal["cpu", "cuda"] = "cuda" if DEVICE.type == "cuda" else "cpu"
    # What stays must not lie in what others have left: there would be room for a whole pack.
    torch.cuda.empty_cache()
    runner = PackRunner(model, device=device)
    levels_NP = make_levels(model.config, grids)
    sizes = [(height, width) for _, height, width in grids]
    levels = [part.numpy() for part in levels_NP.split([h * w for h, w in sizes])]
    on_device = levels_NP.to(DEVICE)
    whole = _run(runner, levels, sizes, packs=2)[0]
    alone = seconds(lambda: model(on_device, grids), _PACKS)
    synchronize()
    start = time.perf_counter()
    _run(runner, levels, sizes, packs=_PACKS)
    taken = (time.perf_counter() - start) / _PACKS
    found = {
        "patches_per_s": round(num_patches(grids) / taken),
        "share_of_the_tower_alone": round(alone / taken, 3),
    }
    return found | (_halves(runner, levels, sizes, whole) if device == "cuda" else {})


def _run(runner: PackRunner, levels: Levels, sizes: Sizes, packs: int) -> list[torch.Tensor]:
    """Vectors of each part, in order; one pack runs while the next is started."""
    under_way: deque[tuple[slice, PackResults | None]] = deque()
    vectors = []
    for _ in range(packs):
        under_way += runner.start(levels, sizes)
        while len(under_way) > 1:
            vectors.append(_vectors(under_way.popleft()[1]))
    return [*vectors, *(_vectors(results) for _, results in under_way)]


def _vectors(results: PackResults | None) -> torch.Tensor:
    assert results is not None, "a segment did not fit in memory"
    results.wait()
    return results.vectors


def _halves(
    runner: PackRunner, levels: Levels, sizes: Sizes, whole: torch.Tensor
) -> dict[str, Any]:
    """The same pack where memory is short of it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _run(runner, levels, sizes, packs=1)
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + _TOO_LITTLE * needed
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        parts = _run(runner, levels, sizes, packs=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    cosine = torch.cosine_similarity(torch.cat(parts), whole, dim=1).min()
    return {
        "needed_gb": round(needed / 1e9, 2),
        "allowed_gb": round(_TOO_LITTLE * needed / 1e9, 2),
        "parts": len(parts),
        "least_cosine_with_the_whole": round(float(cosine), 6),
        "right": len(parts) > 1 and float(cosine) > 0.999,
    }
