"""What every benchmark tells of its figures: spread, ratios, the machine they are of."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL
import torch

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: dict[str, Any]) -> None:
    """Writes `results/NAME.json`: the figures, after the machine that they are of."""
    found = {"machine": machine()} | results
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most, to four digits."""
    found = list(values)
    of = {"median": statistics.median(found), "least": min(found), "most": max(found)}
    return {name: float(f"{value:.4g}") for name, value in of.items()}


def ratio_lines(case: dict[str, Any], *names: str) -> Iterator[str]:
    """A case's ratios as lines to read."""
    for name in names:
        ratio = case[name]
        yield (
            f"  {name.replace('_', ' '):16} {ratio['median']:8.3f} "
            f"({ratio['least']:.3f}-{ratio['most']:.3f})"
        )


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
