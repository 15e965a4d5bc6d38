"""How fast is the tower on one core, and how near to the core's limit?

Presets and transformers' model with the same weights, in float32, turn by turn in one run, on
stills of 256 patches, of 1,024, and of mixed sizes. transformers gets them packed and one by one;
the ratio is of its better way. Matrix products alone, by oneDNN and by MKL, are the ceiling. All
results are compared.

    python -m benchmarks.encoder [--full] [--rounds 5]

With --full, the medium and the large preset as well: 9 GB of memory. Prints patches and GFLOP a CPU
second, the share of the ceiling and the ratio to transformers, median and range over the rounds;
writes them to benchmarks/results/encoder.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers.models.glm4v import Glm4vVisionModel as PeerModel

from benchmarks import report
from benchmarks.report import ratio_lines, spread
from benchmarks.towers import Grid, make_levels, make_peer, num_patches, pixels_of, web_grids
from encoder import Glm4vVisionModel, forward_flop, load_encoder
from encoder.linear import linear

# Patches of a pack, as the pipeline's budget on a CPU has it; less where a turn would take long.
PATCHES = {"tiny": 4096, "small": 4096, "medium": 1024, "large": 1024}
PRODUCTS = [(4096, 384, 1536), (1024, 1536, 1536)]
LARGEST_ERROR = 1e-5
Tokens = torch.Tensor
Way = Callable[[], Tokens]


def main() -> None:
    """Runs all cases and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ceiling = measure_ceiling(arguments.rounds)
    limit = max(by["median"] for by in ceiling.values())
    print("matrix products:", ", ".join(f"{n} {by['median']:.0f}" for n, by in ceiling.items()))
    cases = []
    for name in list(PATCHES) if arguments.full else ["tiny", "small"]:
        model = load_encoder(name)
        for sizes, grids in packs(PATCHES[name]).items():
            case = measure(model, grids, limit, arguments.rounds)
            cases.append({"tower": name, "sizes": sizes} | case)
            print(describe(cases[-1]), flush=True)
    results = {
        "transformers": transformers.__version__,
        "threads": 1,
        "rounds": arguments.rounds,
        "ceiling_gflop_per_s": ceiling,
        "cases": cases,
    }
    report.write("encoder", results)


def packs(patches: int) -> dict[str, list[Grid]]:
    """What is encoded."""
    return {
        "256 patches each": [(1, 16, 16)] * (patches // 256),
        "1,024 patches each": [(1, 32, 32)] * (patches // 1024),
        "mixed": web_grids(patches, median=256, merge=2, most=1024),
    }


def measure_ceiling(rounds: int) -> dict[str, dict[str, float]]:
    """GFLOP a second of the matrix product that runs best, by library."""
    libraries: dict[str, Callable[..., torch.Tensor]] = {"oneDNN": linear, "MKL": F.linear}
    found: dict[str, list[float]] = {name: [] for name in libraries}
    factors = [(torch.randn(rows, k), torch.randn(n, k)) for rows, k, n in PRODUCTS]
    for _ in range(rounds):
        for name, multiply in libraries.items():
            speeds = [
                2 * x.shape[0] * weight.numel() / seconds(lambda: multiply(x, weight))[0]  # noqa: B023
                for x, weight in factors
            ]
            found[name].append(max(speeds) / 1e9)
    return {name: spread(speeds) for name, speeds in found.items()}


def seconds(run: Way, at_least: float = 0.3) -> tuple[float, Tokens]:
    """CPU seconds of a run, over as many as take a while, and what the last one gave."""
    runs, start = 0, time.process_time()
    while True:
        result = run()
        runs += 1
        if (taken := time.process_time() - start) >= at_least:
            return taken / runs, result


@torch.inference_mode()
def measure(
    model: Glm4vVisionModel, grids: list[Grid], limit: float, rounds: int
) -> dict[str, Any]:
    """All ways in turn, the first of which takes turns too."""
    levels = make_levels(model.config, grids)
    pixels = pixels_of(levels, model.config)
    peer = make_peer(model, torch.float32)
    ways: dict[str, Way] = {
        "ours": lambda: model(levels, grids),
        "transformers, packed": lambda: peer_packed(peer, pixels, grids),
        "transformers, one by one": lambda: peer_one_by_one(peer, pixels, grids),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    worst = 0.0
    for turn in range(rounds + 1):
        results: dict[str, Tokens] = {}
        for name in sorted(ways, reverse=bool(turn % 2)):
            spent, results[name] = seconds(ways[name])
            if turn:  # The first one warms up.
                taken[name].append(spent)
        for name, theirs in results.items():
            error = float((results["ours"] - theirs).abs().max() / theirs.abs().max())
            assert error < LARGEST_ERROR, (name, error)
            worst = max(worst, error)
    patches, gflop = num_patches(grids), forward_flop(model.config, grids) / 1e9
    speeds = {name: spread(patches / each for each in spent) for name, spent in taken.items()}
    speed = spread(gflop / spent for spent in taken["ours"])
    return {
        "stills": len(grids),
        "patches": patches,
        "patches_per_s": speeds,
        "gflop_per_s": speed,
        "share_of_ceiling": round(speed["median"] / limit, 3),
        "throughput_ratio": ratio_to_the_better(taken),
        "largest_error": float(f"{worst:.2g}"),
    }


def peer_packed(peer: PeerModel, pixels: torch.Tensor, grids: list[Grid]) -> Tokens:
    """transformers with all stills at once."""
    tokens: Tokens = peer(pixels, torch.tensor(grids)).pooler_output
    return tokens


def peer_one_by_one(peer: PeerModel, pixels: torch.Tensor, grids: list[Grid]) -> Tokens:
    """transformers with one still after the other."""
    parts = pixels.split([num_patches([grid]) for grid in grids])
    pairs = zip(parts, grids, strict=True)
    return torch.cat([peer_packed(peer, part, [grid]) for part, grid in pairs])


def ratio_to_the_better(taken: dict[str, list[float]]) -> dict[str, float]:
    """How many times faster ours is than the better way of transformers, over the rounds."""
    peers = (spent for name, spent in taken.items() if name != "ours")
    theirs = min(peers, key=statistics.median)
    return spread(their / our for their, our in zip(theirs, taken["ours"], strict=True))


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['tower']}, {case['sizes']} ({case['stills']} stills)"]
    for way, speed in case["patches_per_s"].items():
        span = f"({speed['least']:.0f}-{speed['most']:.0f})"
        lines.append(f"  {way:24} {speed['median']:9.0f} patches/s {span}")
    lines.append(
        f"  {case['gflop_per_s']['median']:.0f} GFLOP/s, {case['share_of_ceiling']:.0%} of the "
        f"ceiling, largest error {case['largest_error']:.1e}"
    )
    return "\n".join([*lines, *ratio_lines(case, "throughput_ratio")])


if __name__ == "__main__":
    main()
