"""What does `--decode fast` save, and what does it do to the vectors?

Real photos become patches with exact and with fast decoding, turn by turn in one thread, and then
vectors, by presets with random weights: the mean of an item's merged tokens.

    python -m benchmarks.decode_fast [FOLDER] [--rounds 5] [--photos 60]

Without FOLDER, the photos are scikit-image's, as JPEG, most of them too small for it to matter.
Prints milliseconds of CPU a photo, median and range over the rounds, and how far a photo's two
vectors are apart: one less their cosine, median and most over the photos, as they are and less the
mean of all photos' vectors. Two things put that into proportion: the same of exact vectors and
those of the Pillow processor, which resizes in another way, and of two different photos. All is
written to benchmarks/results/decode_fast.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.decoder_process import processor_of, read_photos
from benchmarks.report import ratio_lines, spread
from encoder import Glm4vVisionModel, load_encoder
from processors import GlmgaImageProcessor, GlmgaImageProcessorPil, ImageOptions, decode_image

BUDGETS = {"50,176 pixels": 50_176, "200,704 pixels": 200_704, "802,816 pixels": 802_816}
ENCODERS = ("tiny", "small", "medium")
# Larger packs would take the smallest of machines an hour, and a cosine needs no more.
_MOST_ENCODED_PIXELS = 200_704


def main() -> None:
    """Runs all budgets and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = read_photos(arguments.folder, arguments.photos)
    encoders = {name: load_encoder(name) for name in ENCODERS}
    cases = []
    for name, max_pixels in BUDGETS.items():
        case = measure_time(photos, processor_of(max_pixels), arguments.rounds)
        if max_pixels <= _MOST_ENCODED_PIXELS:
            case["distances"] = measure_vectors(photos, max_pixels, encoders)
        cases.append({"budget": name} | case)
        print(describe(cases[-1]), flush=True)
    sizes = [image.height * image.width for image in map(decode_image, photos)]
    found = {"number": len(photos), "megapixels": spread(np.array(sizes) / 1e6)}
    report.write("decode_fast", {"photos": found, "rounds": arguments.rounds, "cases": cases})


def measure_time(
    photos: list[bytes], processor: GlmgaImageProcessor, rounds: int
) -> dict[str, Any]:
    """Both ways in turn; the first round warms up."""
    ways = {"exact": None, "fast": processor.options}
    runs: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in sorted(ways, reverse=bool(turn % 2)):
            began = time.process_time()
            for data in photos:
                patches(data, processor, ways[way])
            runs[way].append(1e3 * (time.process_time() - began) / len(photos))
    exact, fast = (np.array(runs[way][1:]) for way in ways)
    reduced = [decode_image(data, reduce_for=processor.options) for data in photos]
    return {
        "cpu_ms": {"exact": spread(exact), "fast": spread(fast)},
        "exact_over_fast": spread(exact / fast),
        "reduced_share": sum(len(image.pixels) < image.height for image in reduced) / len(photos),
    }


def patches(
    data: bytes, processor: Any, reduce_for: ImageOptions | None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A photo's, as the job makes them."""
    image = decode_image(data, reduce_for=reduce_for)
    found: tuple[np.ndarray, tuple[int, int, int]] = processor.patches(
        image.pixels, size=(image.height, image.width)
    )
    return found


def measure_vectors(
    photos: list[bytes], max_pixels: int, encoders: dict[str, Glm4vVisionModel]
) -> dict[str, Any]:
    """How far exact vectors are from others, by encoder."""
    processor = processor_of(max_pixels)
    pillow = GlmgaImageProcessorPil(**vars(processor.options))
    options = processor.options
    found = {}
    for name, model in encoders.items():
        exact = vectors(model, [patches(data, processor, None) for data in photos])
        others = {
            "fast": vectors(model, [patches(data, processor, options) for data in photos]),
            "the Pillow processor": vectors(
                model, [patches(data, pillow, None) for data in photos]
            ),
            "another photo": np.roll(exact, 1, axis=0),
        }
        mean = exact.mean(axis=0)
        found[name] = {
            other: {
                "as_they_are": spread(distances(exact, theirs)),
                "less_the_mean": spread(distances(exact - mean, theirs - mean)),
            }
            for other, theirs in others.items()
        }
    return found


@torch.inference_mode()
def vectors(model: Glm4vVisionModel, items: list[tuple[np.ndarray, Any]]) -> np.ndarray:
    """The mean of each item's tokens, ``[items, width]``."""
    means = [
        model.forward_features(torch.from_numpy(levels), [grid]).pooler_output.mean(dim=0)
        for levels, grid in items
    ]
    return torch.stack(means).double().numpy()


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """One less the cosine, row by row."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: np.ndarray = 1 - (one * other).sum(axis=1) / lengths
    return found


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['budget']}: {case['reduced_share']:.0%} of the photos are reduced"]
    for way, cpu in case["cpu_ms"].items():
        lines.append(f"  {way:16} {cpu['median']:8.2f} ms ({cpu['least']:.2f}-{cpu['most']:.2f})")
    lines += ratio_lines(case, "exact_over_fast")
    for encoder, others in case.get("distances", {}).items():
        for other, distance in others.items():
            raw, centred = distance["as_they_are"], distance["less_the_mean"]
            lines.append(
                f"  {encoder:7} exact and {other:20} {raw['median']:.1e} (most {raw['most']:.1e})"
                f"  less the mean {centred['median']:.1e} (most {centred['most']:.1e})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
