"""What does it cost to make patches of a photo's bytes, against transformers' two classes?

One thread makes patches of real photos, decoding included: ours, transformers' torchvision class
and its Pillow class, turn by turn in one run, at the native budget and at 224 x 224.

    python -m benchmarks.preprocess [FOLDER] [--rounds 5] [--photos 200]

Without FOLDER, the photos are scikit-image's, as JPEG. It needs transformers and torchvision, which
may be one that was built for another torch. On the first 40 photos each peer is tried with all that
it takes a photo as, and goes on with the fastest; an array of our own decoder's is tried and told,
but never taken. Prints milliseconds of CPU a photo, median and range over the rounds, in all and by
step, ratios within the rounds, and the bytes handed on; writes them to
benchmarks/results/preprocess.json. All levels are compared in the same run.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import benchmarks.peers.torchvision_shim  # noqa: F401 (before transformers asks for torchvision)
from benchmarks import report
from benchmarks.decoder_process import cpu_seconds, read_photos
from benchmarks.report import ratio_lines, spread
from processors import GlmgaImageProcessor, GlmgaImageProcessorPil, decode_image
from processors.patches import patchify
from processors.resize import resize_torch
from processors.sandbox import Decoder
from processors.sizes import target_size

try:
    from transformers.models.glmga import image_processing_glmga as peer_torch
    from transformers.models.glmga import image_processing_pil_glmga as peer_pillow
except ImportError as error:
    raise SystemExit(f"the peers need transformers and torchvision: {error}") from error

MAX_PIXELS = {"native size": None, "50,176 pixels": 50_176}
_PHOTOS_TRIED = 40
Way = Callable[[bytes], Any]


def main() -> None:
    """Runs both budgets and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = read_photos(arguments.folder, arguments.photos)
    cases = []
    for name, max_pixels in MAX_PIXELS.items():
        with tempfile.TemporaryDirectory() as folder:
            case = measure(photos, max_pixels, arguments.rounds, Path(folder))
        cases.append({"budget": name} | case)
        print(describe(cases[-1]), flush=True)
    megapixels = [decode_image(data).pixels.size / 3e6 for data in photos]
    results = {
        "photos": {
            "source": "scikit-image" if arguments.folder is None else "a folder",
            "number": len(photos),
            "mean_bytes": round(statistics.mean(map(len, photos))),
            "mean_megapixels": round(statistics.mean(megapixels), 3),
        },
        "rounds": arguments.rounds,
        "cases": cases,
    }
    report.write("preprocess", results)


def measure(
    photos: list[bytes], max_pixels: int | None, rounds: int, folder: Path
) -> dict[str, Any]:
    """One budget: peers tried, levels compared, then all in turn; the first round warms up."""
    ours = GlmgaImageProcessor(**({} if max_pixels is None else {"max_pixels": 2 * max_pixels}))
    edges = {"shortest_edge": ours.options.min_pixels, "longest_edge": ours.options.max_pixels}
    peers = {
        "torchvision class": peer_torch.GlmgaImageProcessor(size=edges),
        "Pillow class": peer_pillow.GlmgaImageProcessorPil(size=edges),
    }
    compared = sum(compare(data, ours, *peers.values()) for data in photos)
    tried = {
        name: {form: cpu_ms(way, photos[:_PHOTOS_TRIED]) for form, way in forms_of(peer).items()}
        for name, peer in peers.items()
    }
    ways: dict[str, Way] = {"ours": lambda data: ours.patches(decode_image(data).pixels)}
    for name, peer in peers.items():
        best = min(tried[name], key=lambda form: tried[name][form] if "our" not in form else np.inf)
        ways[name] = forms_of(peer)[best]
    found: dict[str, list[float]] = {name: [] for name in [*ways, "ours, decoder process"]}
    for turn in range(rounds + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            found[name].append(cpu_ms(ways[name], photos))
        found["ours, decoder process"].append(through_the_process(photos, ours))
    runs = {name: np.array(values[1:]) for name, values in found.items()}
    return {
        "photos_with_equal_levels": compared,
        "cpu_ms": {name: spread(values) for name, values in runs.items()},
        **{f"{name} over ours": spread(runs[name] / runs["ours"]) for name in peers},
        "tried_cpu_ms": tried,
        "steps_cpu_ms": split(photos, ours, peers, folder),
        **bytes_handed_on(photos, ours, ways),
    }


def forms_of(peer: Any) -> dict[str, Way]:
    """The peer on all that it takes a photo as, each with the cheapest decoding to it."""

    def as_array(data: bytes) -> np.ndarray:
        return np.array(open_pillow(data))

    def as_planes(data: bytes) -> torch.Tensor:
        return torch.from_numpy(as_array(data)).permute(2, 0, 1)

    decoders: dict[str, Way] = {
        "a PIL image": open_pillow,
        "an array, channels last": as_array,
        "a tensor, channels first": lambda data: as_planes(data).contiguous(),
        "a tensor, channels first by its strides": as_planes,
        "our decoder's array": lambda data: decode_image(data).pixels,
    }
    kind = "pt" if isinstance(peer, peer_torch.GlmgaImageProcessor) else "np"
    return {
        form: partial(lambda decode, data: peer(decode(data), return_tensors=kind), decode)
        for form, decode in decoders.items()
    }


def open_pillow(data: bytes) -> Image.Image:
    """A decoded photo, as a user of Pillow has it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def compare(data: bytes, ours: GlmgaImageProcessor, planes: Any, pillow: Any) -> bool:
    """Whether both classes' levels are those of ours; raises where they are not."""
    image, levels = open_pillow(data), {"do_rescale": False, "do_normalize": False}
    twin = GlmgaImageProcessorPil(**vars(ours.options))
    for mine, peer in ((ours, planes), (twin, pillow)):
        patches, grid = mine.patches(decode_image(data).pixels)
        theirs = peer(image, return_tensors="np", **levels)
        assert theirs["image_grid_thw"].tolist() == [list(grid)]
        # A still's frame is there twice.
        expected = np.repeat(patches.reshape(len(patches), 3, 1, -1), 2, axis=2)
        assert np.array_equal(theirs["pixel_values"], expected.reshape(len(patches), -1))
    return True


def cpu_ms(way: Way, photos: list[bytes]) -> float:
    """Milliseconds of CPU a photo."""
    began = time.process_time()
    for data in photos:
        way(data)
    return 1e3 * (time.process_time() - began) / len(photos)


def through_the_process(photos: list[bytes], processor: GlmgaImageProcessor) -> float:
    """Likewise of both processes together, where decoding has one of its own."""
    with Decoder() as decoder:
        child = decoder._supervisor.child
        assert child is not None
        began = time.process_time() + cpu_seconds(child.pid)
        for data in photos:
            for pixels in decoder.submit(data).frames():
                processor.patches(pixels)
        return 1e3 * (time.process_time() + cpu_seconds(child.pid) - began) / len(photos)


def split(
    photos: list[bytes], ours: GlmgaImageProcessor, peers: dict[str, Any], folder: Path
) -> dict[str, dict[str, float]]:
    """Where the time goes, by way and step."""
    ways: dict[str, Callable[[Path], Iterator[str]]] = {
        "ours": partial(our_steps, ours),
        **{name: partial(peer_steps, peer) for name, peer in peers.items()},
    }
    paths = [folder / f"{number}" for number in range(len(photos))]
    for path, data in zip(paths, photos, strict=True):
        path.write_bytes(data)
    found: dict[str, dict[str, float]] = {}
    for name, steps in ways.items():
        sums: dict[str, float] = {}
        for path in paths:
            began = time.process_time()
            for step in steps(path):
                ended = time.process_time()
                sums[step] = sums.get(step, 0.0) + ended - began
                began = ended
        found[name] = {step: round(1e3 * sums[step] / len(paths), 3) for step in sums}
    return found


def our_steps(processor: GlmgaImageProcessor, path: Path) -> Iterator[str]:
    """What `patches` does, step by step; says which one is done."""
    data = path.read_bytes()
    yield "fetch"
    pixels = decode_image(data).pixels
    yield "decode"
    height, width = target_size(2, *pixels.shape[:2], processor.options)
    if pixels.shape[:2] != (height, width):
        pixels = resize_torch(pixels, height=height, width=width)
    yield "resize"
    patches, _ = patchify(pixels[None], temporal_patch_size=1)
    yield "patchify"
    patches.copy()  # to another process, by shared memory
    yield "hand-over"


def peer_steps(peer: Any, path: Path) -> Iterator[str]:
    """The same of a peer, as far as its steps can be told apart from without."""
    data = path.read_bytes()
    yield "fetch"
    image = open_pillow(data)
    yield "decode"
    found = peer(image, return_tensors="np")
    yield "resize, normalise, patchify"
    found["pixel_values"].copy()
    yield "hand-over"


def bytes_handed_on(
    photos: list[bytes], ours: GlmgaImageProcessor, ways: dict[str, Way]
) -> dict[str, Any]:
    """What goes on to the encoder: our levels, and a peer's floating point of both frames."""
    patches = [ours.patches(decode_image(data).pixels)[0] for data in photos]
    theirs = ways["torchvision class"](photos[0])["pixel_values"]
    sizes = {"ours": patches[0].shape[1], "peers": theirs.element_size() * theirs.shape[1]}
    mean = statistics.mean(map(len, patches))
    return {
        "bytes_a_patch": sizes,
        "bytes_a_photo": {name: round(size * mean) for name, size in sizes.items()},
    }


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['budget']}: levels equal on {case['photos_with_equal_levels']} photos"]
    for way, cpu in case["cpu_ms"].items():
        lines.append(
            f"  {way:24} {cpu['median']:8.2f} ms ({cpu['least']:.2f}-{cpu['most']:.2f})"
            f"  {case['steps_cpu_ms'].get(way, '')}"
        )
    for peer, forms in case["tried_cpu_ms"].items():
        lines.append(f"  tried, {peer}: {', '.join(f'{k} {v:.2f}' for k, v in forms.items())}")
    lines.append(f"  bytes a patch {case['bytes_a_patch']}, a photo {case['bytes_a_photo']}")
    names = (f"{peer} over ours" for peer in case["tried_cpu_ms"])
    return "\n".join([*lines, *ratio_lines(case, *names)])


if __name__ == "__main__":
    main()
