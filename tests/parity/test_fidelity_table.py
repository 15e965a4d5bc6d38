"""The README's table of errors says what the benchmark has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KINDS = ("photo", "flat", "low contrast", "noise")


def row(name: str, cases: list[dict[str, Any]]) -> str:
    errors = (max(case[key] for case in cases) for key in ("float32", "float32_of_transformers"))
    cosines = (min(case["bfloat16_cosine"][kind] for case in cases) for kind in KINDS)
    return " | ".join(
        [f"| {name}", *(f"{error:.1e}" for error in errors), *(f"{c:.5f}" for c in cosines)]
    )


def test_the_readme_has_the_measured_errors() -> None:
    result = json.loads((ROOT / "benchmarks/results/fidelity.json").read_text())
    cases = {case["tower"]: case for case in result["cases"]}
    presets = {name: cases.pop(name) for name in ("tiny", "small", "medium", "large")}
    assert len(cases) == 10
    rows = [row(f"`{name}`", [case]) for name, case in presets.items()]
    rows.append(row("ten variants of `small`", list(cases.values())))
    readme = (ROOT / "README.md").read_text()
    for expected in rows:
        assert f"{expected} |\n" in readme


def test_what_was_measured_is_within_what_is_promised() -> None:
    result = json.loads((ROOT / "benchmarks/results/fidelity.json").read_text())
    for case in result["cases"]:
        assert case["float32"] < min(1e-5, case["float32_of_transformers"])
        assert case["packed"] < 1e-6
        assert min(case["bfloat16_cosine"].values()) > 0.9995
