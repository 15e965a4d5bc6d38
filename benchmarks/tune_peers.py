"""Which settings of the peers are their best on this machine?

Each peer's first settings against others that differ in some, turn by turn in one run, the whole
command on a corpus cut from real photos, or on clips. What a peer does without options is what was
found to be best.

    python -m benchmarks.tune_peers [--peer NAME] [--count 600] [--rounds 3]

Prints wall time and CPU seconds, median and range over the rounds, and the ratio of wall times to
those of the first, over the pairs; writes them to benchmarks/results/tune_peers.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.clips import make_clips
from benchmarks.contenders import OF_CLIPS, command
from benchmarks.corpus import make_corpus
from benchmarks.process_tree import Usage, run
from benchmarks.report import spread

Settings = dict[str, int | str]

TRIED: dict[str, list[Settings]] = {
    "plain_loop": [
        {"batch_size": 16, "threads": 1, "ahead": 1},
        {"threads": 1, "ahead": 0},
        {"threads": 2, "ahead": 0},
        {"threads": 2, "ahead": 1},
        {"threads": 1, "ahead": 2},
        {"batch_size": 8},
        {"batch_size": 32},
    ],
    "ray_data": [
        {"stages": "fused", "actors": 2, "batch_size": 16, "threads": 1, "blocks": 0},
        {"actors": 1},
        {"actors": 1, "threads": 2},
        {"stages": "split", "actors": 1},
        {"blocks": 16},
        {"blocks": 64},
        {"batch_size": 8},
        {"batch_size": 32},
    ],
    "daft_frame": [
        {"concurrency": 2, "process": 1, "batch_size": 8, "threads": 1, "decode": "pillow"},
        {"concurrency": 1},
        {"concurrency": 1, "process": 0},
        {"concurrency": 2, "process": 0},
        {"concurrency": 1, "process": 0, "decode": "daft"},
        {"concurrency": 1, "threads": 2},
        {"batch_size": 16},
        {"batch_size": 32},
    ],
    "video_loop": [
        {"decode_threads": 2, "threads": 1},
        {"decode_threads": 1},
        {"threads": 2},
    ],
}
"""Of each peer, settings to begin with, and changes to them."""


def main() -> None:
    """Tries all settings and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=TRIED, action="append")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cases = []
    for name in arguments.peer or TRIED:
        media = make_clips(1) if name in OF_CLIPS else make_corpus(arguments.count)
        print(f"{name}, {sum(1 for _ in media.iterdir())} files")
        for case in measure(name, media, arguments.rounds):
            cases.append(case)
            print(describe(case), flush=True)
    results = {"images": arguments.count, "rounds": arguments.rounds, "cases": cases}
    report.write("tune_peers", results)


def measure(name: str, media: Path, rounds: int) -> list[dict[str, Any]]:
    """All settings of a peer, turn by turn."""
    tried = TRIED[name]
    found: list[list[Usage]] = [[] for _ in tried]
    for turn in range(rounds):
        for place in range(len(tried)):
            at = (turn + place) % len(tried)
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "output"
                settings = tried[0] | tried[at]
                found[at].append(run(command(name, media, output, **settings)))
    return [
        {
            "peer": name,
            "settings": settings,
            "wall_s": spread(usage.wall_s for usage in usages),
            "cpu_s": spread(usage.cpu_s for usage in usages),
            "wall_ratio": spread(
                usage.wall_s / first.wall_s for usage, first in zip(usages, found[0], strict=True)
            ),
        }
        for settings, usages in zip(tried, found, strict=True)
    ]


def describe(case: dict[str, Any]) -> str:
    """A case as a line to read."""
    wall, cpu, ratio = (case[name] for name in ("wall_s", "cpu_s", "wall_ratio"))
    settings = ", ".join(f"{key} {value}" for key, value in case["settings"].items())
    return (
        f"  {settings:40} {wall['median']:6.1f} s ({wall['least']:.1f}-{wall['most']:.1f})"
        f"  {cpu['median']:6.1f} s CPU  {ratio['median']:.2f} of the first"
    )


if __name__ == "__main__":
    main()
