"""The decoder process, with what this machine denies it, and photos a second of one core."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options

# A photo of the web, 0.7 megapixels, and the budget of small stills.
PHOTO_HEIGHT, PHOTO_WIDTH = 683, 1024
STILL_PIXELS = 50_176
_MEASURED_S = 1.5
_ADVICE = {
    "system calls filtered (seccomp)": "apt-get install libseccomp2; pip install pyseccomp",
    "no files by name (Landlock)": "a kernel of 5.13 or later with Landlock denies more",
}


def sandbox(options: Options) -> Iterator[Finding]:
    """Starts the decoder process and decodes one small picture in it."""
    from PIL import Image  # noqa: PLC0415

    from processors.sandbox import Decoder, SandboxError  # noqa: PLC0415

    file = io.BytesIO()
    Image.new("RGB", (24, 16), (200, 100, 50)).save(file, "PNG")
    try:
        with Decoder() as decoder:
            enforced = decoder.enforced
            with decoder.submit(file.getvalue()) as decoding:
                pixels = next(decoding.frames())
                right = pixels.shape == (16, 24, 3) and pixels[8, 12].tolist() == [200, 100, 50]
    except SandboxError as error:
        advice = "is this Linux, with /proc and room for processes?"
        yield Finding(step="sandbox", result="broken", figure=first_line(error), advice=advice)
        return
    yield judge_sandbox(enforced, right=right)


def judge_sandbox(enforced: dict[str, bool], *, right: bool) -> Finding:
    """Says what the decoder process is not denied here.

    Args:
        enforced: `processors.sandbox.Decoder.enforced`.
        right: Whether a small picture was decoded rightly.
    """
    missing = [name for name, done in enforced.items() if not done]
    files_open = all(name in missing for name in _ADVICE)
    result: Result = "broken" if files_open or not right else "warning" if missing else "ok"
    figure = f"{len(enforced) - len(missing)} of {len(enforced)} denials in force"
    if missing:
        figure += f"; not: {', '.join(missing)}"
    if not right:
        figure += "; a small picture was decoded wrongly"
    advice = "; ".join(_ADVICE[name] for name in missing if name in _ADVICE)
    return Finding(
        step="sandbox", result=result, figure=figure, advice=advice, values=dict(enforced)
    )


def photos(options: Options) -> Iterator[Finding]:
    """Photos a second of one core, decoded and resized: at their own size, and as small stills."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    data = make_photo()
    rates = {"photos_per_s": _rate(data, None), "stills_per_s": _rate(data, STILL_PIXELS)}
    figure = (
        f"{rates['photos_per_s']:.0f} a second of a core at 0.7 megapixels, "
        f"{rates['stills_per_s']:.0f} as stills of {STILL_PIXELS:,} pixels"
    )
    yield Finding(step="photos", result="ok", figure=figure, values=rates, device="CPU")


def make_photo() -> bytes:
    """Returns a JPEG of 0.7 megapixels, about as many bytes as a photo has: 150 kB."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    random = np.random.default_rng(0)
    # Detail at several scales, as photos have.
    pixels = np.zeros((PHOTO_HEIGHT, PHOTO_WIDTH, 3), np.float32)
    for step, strength in ((64, 60), (16, 25), (4, 10), (1, 4)):
        shape = (-(-PHOTO_HEIGHT // step), -(-PHOTO_WIDTH // step), 3)
        noise = random.normal(0, strength, shape).astype(np.float32)
        pixels += noise.repeat(step, 0).repeat(step, 1)[:PHOTO_HEIGHT, :PHOTO_WIDTH]
    file = io.BytesIO()
    Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _rate(data: bytes, max_pixels: int | None) -> float:
    """Photos a second of CPU time."""
    from processors import GlmgaImageProcessor, MediaOptions, open_media  # noqa: PLC0415

    size = {} if max_pixels is None else {"max_pixels": 2 * max_pixels}  # Two frames a patch.
    processor = GlmgaImageProcessor(**size)

    def once() -> None:
        media = open_media(data, MediaOptions())
        pixels = next(media.frames)
        processor.patches(pixels, size=pixels.shape[:2])

    once()
    done, start, begun = 0, time.process_time(), time.monotonic()
    while time.monotonic() - begun < _MEASURED_S:
        once()
        done += 1
    return done / (time.process_time() - start)
