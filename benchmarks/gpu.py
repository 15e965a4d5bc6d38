"""How near does the encoder come to what a GPU can do, and how far ahead of transformers is it?

First the limits: the best bf16 matrix product, and copies from and to pinned memory. Then the tower
of the large preset in bf16, on packs of one length, of a web corpus's sizes and of clips: ours as
it is, ours compiled and transformers with SDPA and the same weights, turn by turn in one run. Each
way's first results are held against transformers in float32, with freed memory full of NaN, so that
what is read without being written shows. Last, kernels of attention by length, and packs run from
the host's memory.

    python -m benchmarks.gpu [--seconds 460]

Needs torch, numpy, pillow and transformers alone. Prints each figure and writes it at once to
benchmarks/results/gpu.json; what would begin after `--seconds` is left out, and exit status 1 says
that a result was wrong. Without a GPU the same runs at toy size and writes gpu_toy.json: that shows
that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.glm4v import Glm4vVisionModel as PeerModel

from benchmarks import report
from benchmarks.gpu_parts import DEVICE, copies, kernels, poisoned, products, seconds, synchronize
from benchmarks.gpu_runs import runs
from benchmarks.report import spread
from benchmarks.towers import Grid, make_levels, make_peer, num_patches, pixels_of, web_grids
from encoder import CompileError, Glm4vVisionModel, forward_flop, load_encoder, next_pack
from tests.support.towers import cast_model

# Of an item's mean token and the truth's. bfloat16 keeps 0.9995: see benchmarks/fidelity.py.
LEAST_COSINE = 0.999
# Stills that wait for a pack: pipeline/encode.py has 16 calls at once, of three or more each.
QUEUE = 48
Found = dict[str, Any]
Way = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Attributes:
        preset: Of the tower.
        patches: Of a pack.
        sides: Of square segments, in patches.
        median: Patches of a still in the middle of the web corpus.
        clip: A clip's grid.
        product: Rows of the matrix products that are the ceiling.
        copied_bytes: Copied at once.
        rounds: Turns that count.
        at_least: Seconds of a turn.
    """

    preset: str
    patches: int
    sides: tuple[int, ...]
    median: int
    clip: Grid
    product: int
    copied_bytes: int
    rounds: int
    at_least: float

    def packs(self) -> dict[str, list[Grid]]:
        """What is encoded: sides as they are named in the results, and grids."""
        equal = {
            f"{side**2:,} patches each": [(1, side, side)] * max(1, self.patches // side**2)
            for side in self.sides
        }
        most = self.sides[-1] ** 2
        clips = [self.clip] * max(1, self.patches // num_patches([self.clip]))
        web = web_grids(self.patches, median=self.median, merge=2, most=most)
        return equal | {"web corpus": web, "clips": clips}


# 65,536 patches are the pipeline's budget on a GPU, 16,384 tokens.
FULL = Scale(
    preset="large",
    patches=65_536,
    sides=(16, 32, 64, 100),
    median=2048,
    clip=(16, 26, 26),
    product=16_384,
    copied_bytes=2**28,
    rounds=5,
    at_least=0.5,
)
TOY = Scale(
    preset="tiny",
    patches=300,
    sides=(4, 8, 12),
    median=36,
    clip=(2, 4, 6),
    product=64,
    copied_bytes=2**16,
    rounds=1,
    at_least=0.0,
)


def main() -> None:
    """Runs all cases and writes each result down as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=460)
    deadline = time.monotonic() + parser.parse_args().seconds
    on_gpu = DEVICE.type == "cuda"
    results: Found = {
        "device": torch.cuda.get_device_name() if on_gpu else "none: toy size",
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "left_out": "all that is not here",
    }
    wrong = False
    for section, found in measure_all(FULL if on_gpu else TOY):
        results.setdefault(section, []).append(found)
        report.write("gpu" if on_gpu else "gpu_toy", results)
        print(section, found, flush=True)
        wrong = wrong or not found.get("right", True)
        if time.monotonic() > deadline:
            break
    else:
        del results["left_out"]
        report.write("gpu" if on_gpu else "gpu_toy", results)
    sys.exit(1 if wrong else 0)


def measure_all(scale: Scale) -> Iterator[tuple[str, Found]]:
    """Yields a section's name and a result, one after the other."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    ceiling = 0.0
    for product in products(scale.product, scale.rounds):
        ceiling = max(ceiling, product["tflop_per_s"]["median"])
        yield "products", product
    yield "copies", copies(scale.copied_bytes, scale.rounds)
    yield "packs", packing(scale)
    model = load_encoder(scale.preset, device=DEVICE, dtype=torch.bfloat16)
    yield from kernels(model.config, [side**2 for side in scale.sides], scale.patches // 2)
    fused, compiling = compiled(model)
    yield "compiling", compiling
    towers = Towers(model, fused)
    for name, grids in scale.packs().items():
        yield "towers", {"packs": name} | towers.measure(grids, ceiling, scale)
    yield "runs", runs(fused, scale.packs()["web corpus"])


def compiled(model: Glm4vVisionModel) -> tuple[Glm4vVisionModel, Found]:
    """The same weights in compiled blocks, and what that took."""
    fused = cast_model(model, torch.bfloat16)
    start = time.perf_counter()
    refused = []
    try:
        fused.compile_blocks()
    except CompileError as error:
        refused = [str(error)]
    return fused, {"seconds": round(time.perf_counter() - start, 1), "refused": refused}


def packing(scale: Scale) -> Found:
    """How full packs of a web corpus are, as they are taken from an encoder's queue."""
    grids = web_grids(50 * scale.patches, median=scale.median, merge=2, most=scale.sides[-1] ** 2)
    tokens = [height * width // 4 for _, height, width in grids]
    random.Random(0).shuffle(tokens)
    budget, packs = scale.patches // 4, []
    queue: list[int] = []
    start = time.perf_counter()
    while tokens:
        queue, tokens = queue + tokens[: QUEUE - len(queue)], tokens[QUEUE - len(queue) :]
        taken = next_pack(queue, budget)
        packs.append(sum(queue[at] for at in taken))
        queue = [length for at, length in enumerate(queue) if at not in taken]
    taken_s = time.perf_counter() - start
    return {
        "stills": len(grids) - len(queue),
        "fill_ratio": round(sum(packs) / (budget * len(packs)), 4),
        "seconds": round(taken_s, 4),
    }


class Towers:
    """Ours, ours compiled, and transformers', all of the same weights.

    Args:
        model: Ours, in bfloat16.
        fused: The same, compiled.
    """

    def __init__(self, model: Glm4vVisionModel, fused: Glm4vVisionModel) -> None:
        self._model = model
        self._fused = fused
        # Weights must not lie in what others have left, which would stay with them.
        torch.cuda.empty_cache()
        self._peer = make_peer(model, torch.bfloat16)
        self._exact = make_peer(model, torch.float32)

    @torch.inference_mode()
    def measure(self, grids: list[Grid], ceiling: float, scale: Scale) -> Found:
        """All ways in turn, after their results were checked."""
        config = self._model.config
        levels = make_levels(config, grids)
        pixels = pixels_of(levels, config).to(DEVICE)
        levels = levels.to(DEVICE)
        given = pixels.bfloat16()
        ways: dict[str, Way] = {
            "ours": lambda: self._model(levels, grids),
            "ours, compiled": lambda: self._fused(levels, grids),
            "transformers": lambda: run_peer(self._peer, given, grids),
        }
        exact = pooled(run_peer(self._exact, pixels, grids), grids)
        del pixels
        cosines = {name: check(run, exact, grids) for name, run in ways.items()}
        taken = take_turns(ways, scale)
        patches, tflop = num_patches(grids), forward_flop(config, grids) / 1e12
        speed = {name: spread(tflop / each for each in spent) for name, spent in taken.items()}
        pairs = {
            name: list(zip(taken["transformers"], taken[name], strict=True))
            for name in ("ours", "ours, compiled")
        }
        return {
            "items": len(grids),
            "patches": patches,
            "patches_per_s": {
                name: spread(patches / each for each in spent) for name, spent in taken.items()
            },
            "tflop_per_s": speed,
            "share_of_ceiling": {
                name: round(by["median"] / ceiling, 4) for name, by in speed.items()
            },
            "ratio_to_transformers": {
                name: spread(theirs / our for theirs, our in both) for name, both in pairs.items()
            },
            "least_cosine": cosines,
            "waits_for_the_gpu": waits(ways["ours"]),
            "right": all(cosines[name] > LEAST_COSINE for name in pairs),
        }


def run_peer(peer: PeerModel, pixels: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
    """transformers' tokens; it takes a row a slice."""
    rows = [(1, h, w) for t, h, w in grids for _ in range(t)]
    tokens: torch.Tensor = peer(pixels, torch.tensor(rows, device=DEVICE)).pooler_output
    return tokens


def pooled(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """The mean token of each item, float32."""
    parts = tokens.float().split([t * h * w // 4 for t, h, w in grids])
    return torch.stack([part.mean(0) for part in parts])


def check(run: Way, exact: torch.Tensor, grids: list[Grid]) -> float:
    """Least cosine of an item's mean token with the truth's; -1 where one is not finite."""
    run()  # Whatever is made once is made by now.
    with poisoned():
        cosine = float(torch.cosine_similarity(pooled(run(), grids), exact, dim=1).min())
    return -1.0 if math.isnan(cosine) else round(cosine, 6)


def take_turns(ways: dict[str, Way], scale: Scale) -> dict[str, list[float]]:
    """Seconds a run of each way, turn by turn, the first of which warms up."""
    number = {name: max(1, round(scale.at_least / seconds(run, 1))) for name, run in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(scale.rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            taken[name].append(seconds(ways[name], number[name]))
    return taken


def waits(run: Way) -> bool | None:
    """Whether the host waits for the GPU while it starts a pack."""
    if DEVICE.type == "cpu":
        return None
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


if __name__ == "__main__":
    main()
