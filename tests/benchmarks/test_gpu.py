"""The GPU's benchmark at toy size: that it runs on nothing but what a bare machine has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, report

ROOT = Path(__file__).parents[2]
# What torch, numpy, pillow and transformers do not bring.
ABSENT = ["ray", "av", "pyarrow", "tyro", "s3fs", "tenacity", "pyseccomp", "pytest", "hypothesis"]


CODE = f"""
import pathlib, sys
from functools import partial

sys.modules.update(dict.fromkeys({ABSENT}))
import torch
from benchmarks import gpu, report

# A compiler takes a minute; how compiled blocks are run is the same.
torch.compile = partial(torch.compile, backend="eager")
report.RESULTS = pathlib.Path(sys.argv.pop())
gpu.main()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs at full size there")
def test_a_bare_machine_gets_every_figure_and_every_result_right(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_toy.json").read_text())
    assert "left_out" not in found
    assert [case["packs"] for case in found["towers"]] == list(gpu.TOY.packs())
    for case in found["towers"]:
        assert case["right"] and set(case["ratio_to_transformers"]) == {"ours", "ours, compiled"}
    assert found["compiling"][0]["refused"] == []
    assert [case["length"] for case in found["attention"]] == [16, 64, 144]
    assert found["runs"][0]["patches_per_s"] > 0


def test_what_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    grids = [(1, 2, 2), (2, 2, 2)]
    tokens = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert gpu.check(lambda: tokens, exact, grids) == pytest.approx(2 / 5**0.5, abs=1e-6)
    tokens[0, 0] = float("nan")
    assert gpu.check(lambda: tokens, exact, grids) == -1


def test_past_its_time_it_ends_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", "--seconds", "0"])
    with pytest.raises(SystemExit):
        gpu.main()
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert found["left_out"] == "all that is not here"
    assert len(found["products"]) == 1 and "copies" not in found
