"""What follows a failure made on purpose: memory that runs out, and a device error in a child."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import torch

from encoder import PackRunner
from encoder.self_check import max_error
from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options
from pipeline.doctor.process import ROOT
from pipeline.doctor.steps.corpus import num_patches
from pipeline.doctor.steps.packs import run_pack, stills, vectors_of, web_mix
from pipeline.doctor.steps.tower import device_of, make_tower, rounding_bound

# Of what a pack takes beside what is there before it.
_TOO_LITTLE = 0.6
_CHILD_S = 20.0
# Reads past a table of ten rows, which fails an assertion on the device.
_FAIL = """
import torch
table, places = torch.zeros(10, device="cuda"), torch.tensor([1000], device="cuda")
table[places]
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    try:
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError:
        print("sticky", flush=True)
"""
_WORK = """
import torch
print("sum", int(torch.ones(1000, device="cuda").sum()), flush=True)
"""


def memory(options: Options) -> Iterator[Finding]:
    """Runs a pack where memory is short of it: it must come in parts, with the same vectors."""
    device = device_of(options)
    assert device.type == "cuda", "memory is exhausted on GPUs only"
    model = make_tower(options, device)
    runner = PackRunner(model, device="cuda")
    grids = web_mix(device)
    levels, sizes = stills(model.config, grids)
    whole = run_pack(runner, levels, sizes)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_pack(runner, levels, sizes)
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    # A fraction of this process's own: other jobs on the GPU keep theirs.
    allowed = torch.cuda.memory_reserved() + int(_TOO_LITTLE * needed)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    parts = [vectors_of(results) for _, results in runner.start(levels, sizes)]
    torch.cuda.set_per_process_memory_fraction(1.0)
    again = run_pack(runner, levels, sizes)
    bound = rounding_bound(model.downsample.weight.dtype, model.config.depth + 3)
    error = max(max_error(torch.cat(parts), whole), max_error(again, whole))
    right = len(parts) > 1 and error <= bound
    yield Finding(
        step="out of memory",
        result="ok" if right else "broken",
        figure=f"with {_TOO_LITTLE:.0%} of {needed / 2**30:.1f} GiB a pack came in {len(parts)} "
        f"parts, {error:.1g} apart",
        advice="" if right else "lower --token-budget",
        values={
            "pack_bytes": needed,
            "pack_patches": num_patches(grids),
            "parts": len(parts),
            "error": error,
        },
    )


def sticky(options: Options) -> Iterator[Finding]:
    """Fails an assertion on the device in one process: the next process must find it well."""
    failed, worked = _child(_FAIL), _child(_WORK)
    right = worked == "sum 1000"
    result: Result
    if right and failed == "sticky":
        figure, result = "a process that lost its device did no harm to the next", "ok"
    elif right:
        figure, result = f"an error made on purpose did not show: {failed!r}", "warning"
    else:
        figure, result = f"after one process's device error the next failed: {worked}", "broken"
    yield Finding(
        step="device error",
        result=result,
        figure=figure,
        advice="" if right else "the device needs a reset; one bad pack would end a run here",
    )


def _child(code: str) -> str:
    """Runs a program; returns the last line that it printed, or else how it failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_CHILD_S,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_CHILD_S:.0f} s"
    lines = done.stdout.split("\n")[:-1]
    if lines:
        return lines[-1]
    errors = done.stderr.strip().splitlines()
    return first_line(errors[-1] if errors else f"exit code {done.returncode}")
