import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from encoder import PRESETS, Glm4vVisionConfig, Glm4vVisionModel, forward_flop, weight_bytes
from processors import Glm4vImageProcessor

README = Path(__file__).parents[2] / "README.md"
SIDES = (224, 1024)


def test_a_tower_of_ones_is_counted_by_hand() -> None:
    config = Glm4vVisionConfig(
        depth=1,
        hidden_size=4,
        num_heads=1,
        in_channels=1,
        image_size=1,
        patch_size=1,
        temporal_patch_size=1,
        spatial_merge_size=1,
        out_hidden_size=1,
        intermediate_size=1,
    )
    embedding, projections, mlp = 1 * 4, 4 * 4 * 4, 3 * 4 * 1
    downsample, merger = 4 * 1, 1 + 3
    a_patch = embedding + projections + mlp + downsample + merger
    assert forward_flop(config, [(1, 1, 1)]) == 2 * (a_patch + 2 * 4)
    # Three patches of one segment all meet; of three segments, none do.
    assert forward_flop(config, [(1, 1, 3)]) == 2 * (3 * a_patch + 9 * 2 * 4)
    assert forward_flop(config, [(3, 1, 1)]) == 2 * (3 * a_patch + 3 * 2 * 4)


@pytest.mark.parametrize(
    ("fields", "grids"),
    [
        ({}, [(1, 2, 2), (2, 4, 6), (1, 2, 2)]),
        ({"temporal_patch_size": 1, "spatial_merge_size": 1}, [(1, 3, 5)]),
        ({"temporal_patch_size": 4, "patch_size": 16, "spatial_merge_size": 3}, [(2, 6, 9)]),
        ({"depth": 3, "num_heads": 1, "attention_bias": False}, [(1, 8, 2), (1, 2, 8)]),
    ],
)
def test_the_count_is_torchs_own(
    small_config: Glm4vVisionConfig, fields: dict[str, Any], grids: list[tuple[int, int, int]]
) -> None:
    config = Glm4vVisionConfig.from_dict(small_config.to_dict() | fields)
    model = Glm4vVisionModel(config)
    patches = torch.zeros(sum(t * h * w for t, h, w in grids), config.patch_dim)
    # torch counts products, which its fused attention on a CPU hides.
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        model(patches, grids)
    assert counted.get_total_flops() == forward_flop(config, grids)


def test_grids_that_cannot_merge_are_refused(small_config: Glm4vVisionConfig) -> None:
    with pytest.raises(
        ValueError, match=r"\[0\]=\(1, 4, 3\): h and w must be multiples of spa.*=2"
    ):
        forward_flop(small_config, [(1, 4, 3)])
    with pytest.raises(ValueError, match=r"grid_thw=\[1, 4, 6\] is not a list of grids"):
        forward_flop(small_config, [1, 4, 6])  # type: ignore[list-item]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_weigh_what_the_module_holds(preset: str, dtype: Any) -> None:
    model = Glm4vVisionModel(PRESETS[preset], device="meta", dtype=getattr(torch, dtype))
    held = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert weight_bytes(PRESETS[preset], dtype) == held
    assert weight_bytes(PRESETS[preset], getattr(torch, dtype)) == held


def test_other_dtypes_weigh_nothing() -> None:
    with pytest.raises(ValueError, match="dtype='int8' is none of float32, bfloat16, float16"):
        weight_bytes(PRESETS["tiny"], "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype=torch\.float64 is none of"):
        weight_bytes(PRESETS["tiny"], torch.float64)


def grid_of(side: int) -> tuple[int, int, int]:
    return Glm4vImageProcessor().patches(np.zeros((side, side, 3), np.uint8))[1]


def row(preset: str) -> str:
    config = PRESETS[preset]
    flop = [forward_flop(config, [grid_of(side)]) / 1e9 for side in SIDES]
    size = [weight_bytes(config, dtype) / 1e6 for dtype in ("float32", "bfloat16")]
    cells = [
        f"`{preset}`",
        f"{config.num_parameters / 1e6:,.1f} M",
        *(f"{number:,.1f}" for number in flop),
        *(f"{number:,.0f} MB" for number in size),
    ]
    return f"| {' | '.join(cells)} |"


def test_the_readme_has_the_counted_sizes() -> None:
    readme = README.read_text()
    found = re.findall(r"^\| `(?:tiny|small|medium|large)` .* MB \|$", readme, re.MULTILINE)
    assert found == [row(preset) for preset in PRESETS]
    for side in SIDES:
        _, height, width = grid_of(side)
        assert f"{side}x{side} still has {height}x{width} patches" in readme.replace("\n", " ")
