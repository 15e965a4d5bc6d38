"""The kernels of compiled blocks for CUDA, compiled ahead of time and run in an interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="needs triton, of the version that this torch was made for",
)

ROOT = Path(__file__).parents[2]
# How far off a token is relative to its norm, in units of the dtype's epsilon: about 0.4 in half
# precision and 2 in float32, where sums are added up in another order.
BOUNDS = {"bfloat16": 1, "float16": 1, "float32": 8}
# Two norms, the rotation of queries and keys, and the gate of the MLP.
KERNELS = 4


def run(tmp_path: Path, *arguments: str, interpret: bool) -> list[Any]:
    env = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TRITON_INTERPRET": "1" if interpret else "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.inductor_kernels", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.whole
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_kernel_compiles_for_each_generation_of_gpus(tmp_path: Path, dtype: str) -> None:
    targets = {"8.0": "sm_80", "9.0": "sm_90", "10.0": "sm_100"}
    found = run(tmp_path, "compile", dtype, *targets, interpret=False)
    assert len(found) == len(targets)
    for line, target in zip(found, targets.values(), strict=True):
        made = line["made"]
        # Each in one configuration or more.
        assert len(made) >= KERNELS
        assert len({binary["kernel"] for binary in made}) >= KERNELS - 1  # The norms' are alike.
        for binary in made:
            assert binary["target"].startswith(f".target {target}"), binary
            assert binary["bytes"] > 1000
            # What every GPU has for a block of threads without asking for more.
            assert binary["shared"] <= 48 << 10


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(name, marks=[pytest.mark.whole] * (name != "bfloat16")) for name in BOUNDS],
)
def test_compiled_blocks_compute_what_plain_ones_do(tmp_path: Path, dtype: str) -> None:
    (found,) = run(tmp_path, "interpret", dtype, "9.0", interpret=True)
    # One form serves packs of all three lengths.
    assert len(found["kernels"]) == KERNELS
    assert len(found["errors"]) == 3
    assert max(found["errors"]) < BOUNDS[dtype]


@pytest.mark.whole
def test_a_kernel_that_is_wrong_is_found(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "spoil", "bfloat16", "9.0", interpret=True)
    assert min(found["errors"]) > 2 * BOUNDS["bfloat16"]
