"""The README's table of errors says what the benchmark has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from encoder import PRESETS

ROOT = Path(__file__).parents[2]
KINDS = ("photo", "flat", "low contrast", "noise")


def row(case: dict[str, Any]) -> str:
    name = f"`{case['tower']}`" if case["tower"] in PRESETS else case["tower"]
    errors = (f"{case[key]:.1e}" for key in ("float32", "float32_of_transformers"))
    cosines = (f"{case['bfloat16_cosine'][kind]:.5f}" for kind in KINDS)
    return f"| {' | '.join([name, *errors, *cosines])} |\n"


def test_the_readme_has_the_measured_errors() -> None:
    result = json.loads((ROOT / "benchmarks/results/fidelity.json").read_text())
    assert {case["tower"] for case in result["cases"]} >= PRESETS.keys()
    assert "".join(map(row, result["cases"])) in (ROOT / "README.md").read_text()


def test_what_was_measured_is_within_what_is_promised() -> None:
    result = json.loads((ROOT / "benchmarks/results/fidelity.json").read_text())
    for case in result["cases"]:
        assert case["float32"] < min(1e-5, 1.5 * case["float32_of_transformers"])
        assert case["packed"] < 1e-6
        assert min(case["bfloat16_cosine"].values()) > 0.9995
