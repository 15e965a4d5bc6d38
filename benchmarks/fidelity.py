"""How far are the tower's results from the truth, which is transformers' model in float64?

Pictures of all kinds go through the processor and through towers of random weights: the presets,
and small ones that differ in one size. Nothing here depends on the machine's speed.

    python -m benchmarks.fidelity [--full]

With --full, the large preset as well: 9 GB of memory. Prints the worst of each configuration and
writes it to benchmarks/results/fidelity.json:

* float32: the largest difference, over the largest value, of tokens before and after the merger's
  MLP; ours and transformers' own.
* packed: the same, of a picture in a pack with all others against that picture alone.
* bfloat16: the smallest cosine of a picture's mean token and the truth's, by kind of picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import transformers

from benchmarks import report
from encoder import PRESETS, Glm4vVisionConfig, Glm4vVisionModel, load_encoder
from tests.parity.pictures import KINDS, PHOTOS, cut_picture
from tests.parity.reference import (
    make_reference,
    normalize,
    pooled_cosine,
    repeat_frames,
    run_reference,
    worst_error,
)
from tests.support.towers import cast_model, random_model

GROUPS = {
    "photo": PHOTOS,
    "flat": ("flat", "black"),
    "low contrast": ("faint photo", "faint noise"),
    "noise": ("noise",),
}
VARIANTS: dict[str, dict[str, int]] = {
    "patch 16": {"patch_size": 16},
    "temporal 1": {"temporal_patch_size": 1},
    "temporal 4": {"temporal_patch_size": 4},
    "merge 1": {"spatial_merge_size": 1},
    "merge 3": {"spatial_merge_size": 3},
    "heads of 4": {"num_heads": 96},
    "heads of 20": {"hidden_size": 320, "num_heads": 16},
    "heads of 32": {"num_heads": 12},
    "heads of 80": {"hidden_size": 320, "num_heads": 4},
    "heads of 128": {"num_heads": 3},
}
MAX_PIXELS = 25_088


def main() -> None:
    """Runs all cases and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    print(describe_columns())
    for name, case in measure_all(full=arguments.full):
        cases.append({"tower": name} | case)
        print(describe(cases[-1]), flush=True)
    results = {
        "transformers": transformers.__version__,
        "max_pixels": MAX_PIXELS,
        "cases": cases,
    }
    report.write("fidelity", results)


def measure_all(*, full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures one tower after another, none of which outlives its turn."""
    for name in PRESETS:
        if full or name != "large":
            yield name, measure([load_encoder(name)])
    for name, changes in VARIANTS.items():
        config = replace(PRESETS["small"], **changes)
        yield f"small, {name}", measure([random_model(config)])


def measure(owned: list[Glm4vVisionModel]) -> dict[str, Any]:
    """Measures the only model in a list, which is taken out: weights are cast in its place."""
    model = owned.pop()
    pictures = [cut_picture(kind, model.config, MAX_PIXELS) for kind in KINDS]
    levels = torch.cat([picture for picture, _ in pictures])
    grids = [grid for _, grid in pictures]
    sizes = num_tokens(model.config, grids)
    pixels = normalize(repeat_frames(levels, model.config.temporal_patch_size))

    ours = model.forward_features(levels, grids)
    alone = [model.forward_features(picture, [grid]) for picture, grid in pictures]
    packed = zip(*[output.split(sizes) for output in ours], strict=True)
    half = cast_model(model, torch.bfloat16)(levels, grids).split(sizes)
    reference = make_reference(model)
    del model
    theirs = run_reference(reference, pixels.float(), grids)
    truth = run_reference(reference.double(), pixels, grids)

    pairs = zip(half, truth[1].split(sizes), strict=True)
    cosines = dict(zip(KINDS, (pooled_cosine(*pair) for pair in pairs), strict=True))
    return {
        "float32": rounded(worst_error(ours, truth)),
        "float32_of_transformers": rounded(worst_error(theirs, truth)),
        "packed": rounded(max(worst_error(*pair) for pair in zip(packed, alone, strict=True))),
        "bfloat16_cosine": {
            group: round(min(cosines[kind] for kind in kinds), 6) for group, kinds in GROUPS.items()
        },
    }


def num_tokens(config: Glm4vVisionConfig, grids: list[tuple[int, int, int]]) -> list[int]:
    """Tokens of each picture."""
    return [h * w // config.spatial_merge_size**2 for _, h, w in grids]


def rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}")


def describe_columns() -> str:
    """The head of a Markdown table."""
    names = ["tower", "float32", "transformers'", "packed", *(f"bf16 {kind}" for kind in GROUPS)]
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names)])


def describe(case: dict[str, Any]) -> str:
    """A row of it."""
    errors = [case["float32"], case["float32_of_transformers"], case["packed"]]
    cells = [case["tower"], *(f"{error:.1e}" for error in errors)]
    cells += [f"{cosine:.5f}" for cosine in case["bfloat16_cosine"].values()]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
