"""What does it cost to decode in a process of its own, against decoding in the actor?

The bytes of real photos become patches in two ways, turn by turn in one run: decoded in this
process, and through the decoder process while this one resizes the photo before. Each way gets one
core for both of its processes, as where every core has an actor of its own, and then two.

    python -m benchmarks.decoder_process [FOLDER] [--rounds 7] [--photos 200]

Without FOLDER, the photos are scikit-image's, as JPEG. Prints photos a second and CPU seconds a
photo, median and range over the rounds, and the ratio of the two ways, median and range over the
pairs; writes them to benchmarks/results/decoder_process.json.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.report import ratio_lines, spread
from processors import GlmgaImageProcessor, decode_image
from processors.sandbox import Decoder

PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
MAX_PIXELS = {"50,176 pixels": 50_176, "native size": None}
Way = Callable[[list[bytes], GlmgaImageProcessor], None]


def main() -> None:
    """Runs all cases and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = read_photos(arguments.folder, arguments.photos)
    cores = sorted(os.sched_getaffinity(0))
    cases = []
    for number in (1, 2)[: len(cores)]:
        os.sched_setaffinity(0, cores[:number])
        for name, max_pixels in MAX_PIXELS.items():
            case = measure(photos, processor_of(max_pixels), arguments.rounds)
            cases.append({"cores": number, "size": name} | case)
            print(describe(cases[-1]))
    megapixels = [decode_image(data).pixels.size / 3e6 for data in photos]
    results = {
        "photos": {
            "source": str(arguments.folder or "scikit-image"),
            "number": len(photos),
            "mean_bytes": round(statistics.mean(map(len, photos))),
            "mean_megapixels": round(statistics.mean(megapixels), 3),
        },
        "rounds": arguments.rounds,
        "cases": cases,
    }
    report.write("decoder_process", results)


def read_photos(folder: Path | None, number: int) -> list[bytes]:
    """The first files of a folder, or scikit-image's photos again and again."""
    if folder is not None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [path.read_bytes() for path in files[:number]]
    import skimage  # noqa: PLC0415 (peers' environments lack it)

    photos = []
    for name in PHOTOS:
        file = io.BytesIO()
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            photo.convert("RGB").save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return [photos[index % len(photos)] for index in range(number)]


def processor_of(max_pixels: int | None) -> GlmgaImageProcessor:
    """The processor as `--max-pixels` sets it: height times width of a still."""
    return GlmgaImageProcessor(**({} if max_pixels is None else {"max_pixels": 2 * max_pixels}))


def measure(photos: list[bytes], processor: GlmgaImageProcessor, rounds: int) -> dict[str, Any]:
    """Both ways in turn, the first of which takes turns too."""
    found: dict[str, list[tuple[float, float]]] = {"in the actor": [], "decoder process": []}
    for turn in range(rounds + 1):
        # A fresh one each turn: it would be replaced amid a later one, and its CPU time with it.
        with Decoder() as decoder:
            ways: dict[str, Way] = {
                "in the actor": in_the_actor,
                "decoder process": partial(through_the_process, decoder),
            }
            through_the_process(decoder, photos[:10], processor)
            child = decoder._supervisor.child
            assert child is not None
            for name in sorted(ways, reverse=bool(turn % 2)):
                wall, cpu = time.perf_counter(), time.process_time() + cpu_seconds(child.pid)
                ways[name](photos, processor)
                cpu = time.process_time() + cpu_seconds(child.pid) - cpu
                wall = time.perf_counter() - wall
                if turn:  # The first one warms up.
                    found[name].append((len(photos) / wall, cpu / len(photos)))
    actor, process = (np.array(found[name]) for name in ("in the actor", "decoder process"))
    return {
        "photos_per_s": {name: spread(np.array(runs)[:, 0]) for name, runs in found.items()},
        "cpu_s_per_photo": {name: spread(np.array(runs)[:, 1]) for name, runs in found.items()},
        "throughput_ratio": spread(process[:, 0] / actor[:, 0]),
        "cpu_ratio": spread(process[:, 1] / actor[:, 1]),
    }


def in_the_actor(photos: list[bytes], processor: GlmgaImageProcessor) -> None:
    """Decodes here."""
    for data in photos:
        processor.patches(decode_image(data).pixels)


def through_the_process(
    decoder: Decoder, photos: list[bytes], processor: GlmgaImageProcessor
) -> None:
    """Decodes there, one photo ahead."""
    now = decoder.submit(photos[0])
    for data in [*photos[1:], None]:
        ahead = None if data is None else decoder.submit(data)
        for pixels in now.frames():
            processor.patches(pixels)
        if ahead is not None:
            now = ahead


def cpu_seconds(pid: int) -> float:
    """CPU time of another process, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['size']}, {case['cores']} core(s)"]
    for way in case["photos_per_s"]:
        speed, cpu = case["photos_per_s"][way], case["cpu_s_per_photo"][way]
        lines.append(
            f"  {way:16} {speed['median']:8.1f} photos/s ({speed['least']:.1f}-{speed['most']:.1f})"
            f"  {1e3 * cpu['median']:8.2f} ms CPU a photo"
        )
    return "\n".join([*lines, *ratio_lines(case, "throughput_ratio", "cpu_ratio")])


if __name__ == "__main__":
    main()
