"""What does an item cost to plan, to resume and to commit, as there are more of them?

Every case at every number of items runs in a process of its own, whose CPU time and peak memory are
taken: Parquet manifests and a folder are planned; real tables of random vectors are committed;
`embed` is run again on what is committed, half or not at all, up to the start of Ray; and the
driver of whole runs is watched, over one picture of 28x28 pixels again and again.

    python -m benchmarks.scale [--items 1000 10000 100000 1000000] [--full]

With --full, planning at 10,000,000 items as well, and a folder and a driver of ten times as many.
Prints a table, and writes benchmarks/results/scale.json and scale.png. `slope` is that of a line
through the logarithms of items and CPU seconds, both beyond the smallest case's: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, scale_cases

ITEMS = (1_000, 10_000, 100_000, 1_000_000)
FULL_ITEMS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case, and the most items that it is measured at: as a rule, and with --full."""

    run: Callable[[Path, int, scale_cases.Meter], None]
    most: int = ITEMS[-1]
    most_full: int = ITEMS[-1]


# In the order in which they follow each other.
CASES = {
    "plan a manifest": Case(run=scale_cases.plan_manifest, most_full=FULL_ITEMS),
    "plan 1,000 partitions": Case(run=scale_cases.plan_parted),
    "plan a folder": Case(run=scale_cases.plan_folder, most=100_000),
    "commit": Case(run=scale_cases.commit),
    "status": Case(run=scale_cases.status_of_one),
    "resume, all done": Case(run=scale_cases.resume_all),
    "resume, half done": Case(run=scale_cases.resume_half),
    "resume, none done": Case(run=scale_cases.resume_none),
    "add one item": Case(run=scale_cases.add_one),
    "status of two": Case(run=scale_cases.status_of_two),
    "retry's plan": Case(run=scale_cases.retry),
    "driver": Case(run=scale_cases.run_driver, most=10_000, most_full=100_000),
}


def main() -> None:
    """Measures all cases and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=list(ITEMS))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS, metavar=("CASE", "N", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.run:
        run_once(*arguments.run)
        return
    found = []
    print(describe_columns())
    for items in sorted({*arguments.items, *([FULL_ITEMS] if arguments.full else [])}):
        for figures in measure(items, full=arguments.full):
            found.append(figures)
            print(describe(figures), flush=True)
    slopes = {name: slope([f for f in found if f["case"] == name]) for name in CASES}
    print("\n".join(f"{name:24} slope {value:.2f}" for name, value in slopes.items() if value))
    report.write("scale", {"slopes": slopes, "cases": found})
    draw(found, report.RESULTS / "scale.png")


def run_once(name: str, items: str, folder: str) -> None:
    """One case at one number of items; prints its figures."""
    meter = scale_cases.Meter()
    CASES[name].run(Path(folder), int(items), meter)
    print(json.dumps(meter.told()))


def measure(items: int, *, full: bool) -> Iterator[dict[str, Any]]:
    """The cases that are measured at so many items, one after the other in one folder."""
    with tempfile.TemporaryDirectory() as folder:
        scale_cases.prepare(Path(folder), items, parted=items < FULL_ITEMS)
        for name, case in CASES.items():
            if items > (case.most_full if full else case.most):
                continue
            command = [sys.executable, "-m", "benchmarks.scale", "--run", name, str(items), folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            yield {"case": name, "items": items} | json.loads(done.stdout)


def slope(figures: list[dict[str, Any]]) -> float | None:
    """How CPU seconds grow with items, both beyond the smallest case's; None of too few."""
    first, *others = figures or [{}]
    beyond = [(f["items"] - first["items"], f["cpu_s"] - first["cpu_s"]) for f in others]
    logs = [(math.log(items), math.log(seconds)) for items, seconds in beyond if seconds > 0]
    if len(logs) < 2:
        return None
    return round(float(np.polyfit(*np.transpose(logs), 1)[0]), 3)


def describe_columns() -> str:
    """The head of a Markdown table."""
    names = ["case", "items", "s", "CPU us an item", "us an item", "peak MiB", "grown MiB"]
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names)])


def describe(figures: dict[str, Any]) -> str:
    """A row of it."""
    items = figures["items"]
    cells = [figures["case"], f"{items:,}", f"{figures['wall_s']:.2f}"]
    cells += [f"{1e6 * figures[name] / items:.1f}" for name in ("cpu_s", "wall_s")]
    grown = figures["peak_mib"] - figures["before_mib"]
    cells += [f"{value:.0f}" for value in (figures["peak_mib"], grown)]
    return f"| {' | '.join(cells)} |"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """CPU time an item, and peak memory, over the number of items."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (cases do without)

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for index, name in enumerate(dict.fromkeys(f["case"] for f in found)):
        own = [f for f in found if f["case"] == name]
        items = [f["items"] for f in own]
        style = {"label": name, "marker": "osD^vP*X<>hd"[index], "color": f"C{index % 10}"}
        time.plot(items, [1e6 * f["cpu_s"] / f["items"] for f in own], **style)
        memory.plot(items, [f["peak_mib"] - f["before_mib"] for f in own], **style)
    time.set(title="CPU time an item: level is linear", ylabel="µs", yscale="log")
    memory.set(title="Memory that the process grew by", ylabel="MiB", ylim=(0, None))
    for axes in (time, memory):
        axes.set(xscale="log", xlabel="items")
        axes.grid(alpha=0.3)
    figure.legend(*time.get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
