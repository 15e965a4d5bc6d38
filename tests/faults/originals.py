"""Small real photos and clips, one of each kind that decoders have code of their own for."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.elements import JPEG, MATROSKA, MP4, PNG, WEBP, Element, Syntax
from tests.support.clips import ClipMaker, real_clip

SYNTAXES: dict[str, Syntax | None] = {
    "gif": None,
    "jpeg": JPEG,
    "mkv": MATROSKA,
    "mp4": MP4,
    "png": PNG,
    "webp": WEBP,
}
CLIPS = {
    "mkv-h264": ("-c:v", "libx264", "-preset", "ultrafast", "-g", 4),
    "mkv-vp9": ("-c:v", "libvpx-vp9", "-cpu-used", 8, "-crf", 40, "-b:v", 0),
    "mp4-h264": ("-c:v", "libx264", "-bf", 2, "-g", 4),
    "mp4-hevc": ("-c:v", "libx265", "-x265-params", "log-level=error:ctu=16", "-tag:v", "hvc1"),
    "mp4-mpeg4": ("-c:v", "mpeg4", "-q:v", 4, "-bf", 2),
}
PICTURES = {
    "gif-animated": ("RGB", "GIF", {"duration": 80, "loop": 0}),
    "gif-plain": ("P", "GIF", {"transparency": 3}),
    "jpeg-baseline": ("RGB", "JPEG", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\b\0\0"}),
    "jpeg-progressive": ("CMYK", "JPEG", {"quality": 70, "progressive": True}),
    "png-16-bit": ("I;16", "PNG", {}),
    "png-animated": ("RGBA", "PNG", {"duration": 50}),
    "png-palette": ("P", "PNG", {"transparency": 5, "bits": 8}),
    "webp-animated": ("RGB", "WEBP", {"duration": 40, "quality": 50}),
    "webp-lossless": ("RGBA", "WEBP", {"lossless": True}),
    "webp-lossy": ("RGB", "WEBP", {"quality": 60}),
}
NAMES = sorted([*CLIPS, *PICTURES, "png-interlaced"])
_SIZE = (64, 48)


def make_originals(photo: Path, clips: ClipMaker) -> dict[str, bytes]:
    """Every file by its name, which begins with its format's; each of a few kilobytes."""
    with Image.open(photo) as image:
        small = image.convert("RGB").resize(_SIZE)
    made = {name: _picture(small, name) for name in PICTURES}
    made["png-interlaced"] = _interlaced(small)
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 8, "-an", "-vf", "scale=64:-2")
    for name, options in CLIPS.items():
        path = clips.make(f"original-{name}.{name[:3]}", *source, *options)
        made[name] = path.read_bytes()
    return dict(sorted(made.items()))


def partner(name: str) -> str:
    """The next file of the same format, or the next one."""
    kind = name.partition("-")[0]
    alike = [each for each in NAMES if each.startswith(f"{kind}-")]
    return alike[(alike.index(name) + 1) % len(alike)]


def _picture(small: Image.Image, name: str) -> bytes:
    mode, kind, options = PICTURES[name]
    sink, more = io.BytesIO(), dict[str, Any](options)
    if name.endswith("animated"):
        more |= {"save_all": True, "append_images": [_in_mode(_turned(small), mode)]}
    _in_mode(small, mode).save(sink, kind, **more)
    return sink.getvalue()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_180)


def _interlaced(small: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow reads and does not write."""
    pixels = np.asarray(small)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, right in (*passes, (1, 0, 2, 1))
        for row in pixels[top::down, left::right]
    ]
    size = b"".join(side.to_bytes(4, "big") for side in small.size)
    chunks = [(b"IHDR", size + b"\x08\x02\0\0\1"), (b"IDAT", zlib.compress(b"".join(rows)))]
    return PNG.magic + b"".join(PNG.write(Element(*chunk)) for chunk in [*chunks, (b"IEND", b"")])
