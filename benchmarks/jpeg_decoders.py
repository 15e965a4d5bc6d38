"""Which decoder is a JPEG's pixels best had from?

Real photos become uint8 RGB in memory that is there already, turn by turn in one thread, by each
decoder that is installed: Pillow; simplejpeg, imagecodecs and PyTurboJPEG, all three of them
libjpeg-turbo as Pillow is; and `decode_image`, which takes simplejpeg where it gives what Pillow
gives, and has Pillow look at the header first.

    python -m benchmarks.jpeg_decoders [FOLDER] [--rounds 5] [--photos 200]

Without FOLDER, the photos are scikit-image's. Prints milliseconds of CPU a photo, median and range
over the rounds, and the share of photos of which the pixels are Pillow's; writes them to
benchmarks/results/jpeg_decoders.json.

simplejpeg was taken: half of Pillow's time, all pixels equal, 1 MB installed, written in place.
imagecodecs is as fast, but 45 MB of every format there is; PyTurboJPEG needs a library that wheels
do not bring.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.decoder_process import read_photos
from benchmarks.report import spread
from processors import decode_image

Into = Callable[[bytes, np.ndarray], object]


def main() -> None:
    """Runs all decoders in turn and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    photos = read_photos(arguments.folder, arguments.photos)
    decoders = found_decoders()
    sizes = [Image.open(io.BytesIO(data)).size for data in photos]
    memory = np.zeros(3 * max(width * height for width, height in sizes), np.uint8)
    rooms = [memory[: 3 * w * h].reshape(h, w, 3) for w, h in sizes]
    runs: dict[str, list[float]] = {name: [] for name in decoders}
    for turn in range(arguments.rounds + 1):
        for name in sorted(decoders, reverse=bool(turn % 2)):
            began = time.process_time()
            for data, room in zip(photos, rooms, strict=True):
                decoders[name](data, room)
            runs[name].append(1e3 * (time.process_time() - began) / len(photos))
    cases = {
        name: {
            "cpu_ms": spread(runs[name][1:]),  # The first one warms up.
            "of_pillows_time": spread(np.array(runs[name][1:]) / runs["Pillow"][1:]),
            "equal": sum(map(same(into), photos, rooms)) / len(photos),
        }
        for name, into in decoders.items()
    }
    for name, case in cases.items():
        cpu, ratio = case["cpu_ms"], case["of_pillows_time"]
        print(
            f"{name:14} {cpu['median']:6.3f} ms ({cpu['least']:.3f}-{cpu['most']:.3f})"
            f"  {ratio['median']:.2f} of Pillow's  equal on {case['equal']:.1%}"
        )
    report.write("jpeg_decoders", {"photos": len(photos), "decoders": cases})


def found_decoders() -> dict[str, Into]:
    """Those that are installed here."""
    found: dict[str, Into] = {
        "Pillow": by_pillow,
        "decode_image": lambda data, room: decode_image(data, room=lambda *_: room),
    }
    with suppress(ImportError):
        import simplejpeg  # noqa: PLC0415

        found["simplejpeg"] = lambda data, room: simplejpeg.decode_jpeg(data, buffer=room)
    with suppress(ImportError):
        import imagecodecs  # noqa: PLC0415

        found["imagecodecs"] = lambda data, room: imagecodecs.jpeg8_decode(
            data, outcolorspace="RGB", out=room
        )
    with suppress(ImportError, RuntimeError):  # The latter where there is no libturbojpeg.
        from turbojpeg import TJPF_RGB, TurboJPEG  # noqa: PLC0415

        turbo = TurboJPEG()
        found["PyTurboJPEG"] = lambda data, room: turbo.decode(
            data, pixel_format=TJPF_RGB, dst=room
        )
    return found


def by_pillow(data: bytes, room: np.ndarray) -> None:
    """Pillow's pixels, copied to where they are wanted."""
    room[:] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def same(into: Into) -> Callable[[bytes, np.ndarray], bool]:
    """Tells whether a photo's pixels are Pillow's."""

    def is_same(data: bytes, room: np.ndarray) -> bool:
        by_pillow(data, room)
        expected = room.copy()
        room[:] = 0
        into(data, room)
        return np.array_equal(room, expected)

    return is_same


if __name__ == "__main__":
    main()
