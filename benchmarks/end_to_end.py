"""How long does the whole job take, beside what a user would pick instead?

The same JPEGs, cut from real photos, become vectors in Parquet by patchflow, by a plain loop, by
Ray Data and by Daft, the peers with transformers inside and with the settings that `tune_peers`
found; then the same clips by patchflow and by a loop that decodes every frame and keeps those
sampled. One command after the other, turn by turn in one run, all with the same weights.

    python -m benchmarks.end_to_end [--counts 4504 20000] [--rounds 3] [--photos FOLDER]
        [--copies 8]

Without FOLDER, photos are those of `benchmarks.corpus`. Prints and writes to
benchmarks/results/end_to_end.json, median and range over the rounds:

* wall: the whole command, from its start to its exit.
* first: until the first commit, or the peer's first file, is whole.
* steady: items a second apart from start-up: those that the second corpus has more than the first,
  over the time that it takes longer. With one corpus there is none.
* CPU seconds and peak memory of the whole process tree, see `benchmarks.process_tree`.
* busy: each core's share, between half and nine tenths of the command's time.
* times ours: the peer's wall over patchflow's, over the rounds' pairs.

Every row is there, `verify` passes, and vectors agree, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.clips import make_clips
from benchmarks.contenders import OF_CLIPS, OF_JPEGS, OURS, check, command, first_output
from benchmarks.corpus import make_corpus
from benchmarks.process_tree import Usage, run
from benchmarks.report import spread


@dataclass(kw_only=True)
class Measured:
    """All rounds over one set of media, in which contenders took turns to be the first."""

    items: int
    usages: dict[str, list[Usage]] = field(default_factory=dict)
    first_s: dict[str, list[float]] = field(default_factory=dict)
    cosines: list[float] = field(default_factory=list)


def main() -> None:
    """Runs all cases and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[4504, 20_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--copies", type=int, default=8)
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    smaller: Measured | None = None
    for count in sorted(arguments.counts):
        corpus = make_corpus(count, arguments.photos)
        measured = measure([OURS, *OF_JPEGS], corpus, arguments.rounds)
        add(cases, "JPEGs", measured, smaller)
        smaller = smaller or measured
    if arguments.copies:
        clips = make_clips(arguments.copies)
        add(cases, "clips", measure([OURS, *OF_CLIPS], clips, arguments.rounds), None)
    report.write("end_to_end", {"rounds": arguments.rounds, "cases": cases})


def add(
    cases: list[dict[str, Any]], media: str, measured: Measured, smaller: Measured | None
) -> None:
    """Keeps and prints a case."""
    cases.append({"media": media} | summary(measured, smaller))
    print(describe(cases[-1]), flush=True)


def measure(names: Sequence[str], media: Path, rounds: int) -> Measured:
    """Runs every contender once a round, and checks what they wrote."""
    measured = Measured(items=sum(1 for _ in media.iterdir()))
    for turn in range(rounds):
        first = turn % len(names)
        with tempfile.TemporaryDirectory() as folder:
            outputs = {name: Path(folder) / name for name in (*names[first:], *names[:first])}
            for name, output in outputs.items():
                usage = run(command(name, media, output))
                measured.usages.setdefault(name, []).append(usage)
                first_s = first_output(name, output) - usage.began
                measured.first_s.setdefault(name, []).append(first_s)
            measured.cosines.append(check(outputs, media))
    return measured


def summary(measured: Measured, smaller: Measured | None) -> dict[str, Any]:
    """A case's figures: the spread of each over the rounds, by contender."""
    ours = measured.usages[OURS]
    contenders = {}
    for name in sorted(measured.usages, key=[OURS, *OF_JPEGS, *OF_CLIPS].index):
        usages = measured.usages[name]
        contenders[name] = {
            "wall_s": spread(usage.wall_s for usage in usages),
            "first_s": spread(measured.first_s[name]),
            "cpu_s": spread(usage.cpu_s for usage in usages),
            "peak_gib": spread(usage.peak_bytes / 2**30 for usage in usages),
            "core_busy": [
                spread(core) for core in zip(*(u.core_busy for u in usages), strict=True)
            ],
            "times_ours": spread(a.wall_s / b.wall_s for a, b in zip(usages, ours, strict=True)),
        }
        if smaller is not None:
            more = measured.items - smaller.items
            pairs = zip(usages, smaller.usages[name], strict=True)
            contenders[name]["steady_items_per_s"] = spread(
                more / (long.wall_s - short.wall_s) for long, short in pairs
            )
    return {
        "items": measured.items,
        "least_cosine": min(measured.cosines),
        "contenders": contenders,
    }


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['items']} {case['media']}, cosines of {case['least_cosine']:.6f} or more"]
    for name, found in case["contenders"].items():
        median = {key: value["median"] for key, value in found.items() if key != "core_busy"}
        wall, times = found["wall_s"], found["times_ours"]
        busy = " ".join(f"{core['median']:.0%}" for core in found["core_busy"])
        lines.append(
            f"  {name:11}{wall['median']:7.1f} s ({wall['least']:.1f}-{wall['most']:.1f})"
            f"  first {median['first_s']:6.1f} s  {median['cpu_s']:7.1f} s CPU"
            f"  {median['peak_gib']:5.2f} GiB  busy {busy}"
            f"  {times['median']:5.2f} times ours ({times['least']:.2f}-{times['most']:.2f})"
            + (
                f"  steady {median['steady_items_per_s']:.1f} items/s"
                if "steady_items_per_s" in median
                else ""
            )
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
