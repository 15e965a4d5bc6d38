"""A collection of real photos of many sizes and formats, with files among them that are none."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Collection:
    """A folder as people have them: good photos, and files that are none among them."""

    folder: Path
    good: list[Path]
    bad: dict[str, str]
    """Error codes by file name."""
    growing: Path
    """A second folder, of good photos that a test may replace."""
    cut: Callable[[str], bytes]
    """Cuts one more photo, in the format of a suffix."""

    @property
    def uris(self) -> set[str]:
        return {str(path) for path in self.good} | {str(self.folder / n) for n in self.bad}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """132 good photos of many sizes, cut from scikit-image's, and nine files that are bad."""
    cut = _cutter(seed=20)
    root = tmp_path_factory.mktemp("media")
    folder, growing = root / "photos", root / "growing"
    names = ["2024/a b", "2024/50% #1", "größe", "k=v", "plain"]
    good = []
    for index in range(128):
        suffix = (".jpg", ".png", ".webp", ".JPEG")[index % 4]
        path = folder / names[index % len(names)] / f"{index:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cut(suffix))
        good.append(path)
    renamed = folder / "a png.jpg"
    renamed.write_bytes(cut(".png"))
    good.append(renamed)
    for index in range(3):
        path = growing / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cut(".jpg"))
    bad = _write_bad(folder, cut)
    (folder / "notes.txt").write_text("no photo, and not called like one")
    return Collection(folder, good, bad, growing, cut)


def _cutter(seed: int) -> Callable[[str], bytes]:
    from PIL import Image
    from skimage import data

    photos = ("astronaut", "chelsea", "coffee", "camera", "coins", "ihc", "motorcycle_left")
    sources = [Image.open(Path(data.data_dir) / f"{name}.png") for name in photos]
    sources += [Image.open(Path(data.data_dir) / f"{name}.jpg") for name in ("rocket", "retina")]
    random = np.random.default_rng(seed)

    def cut(suffix: str) -> bytes:
        source = sources[random.integers(len(sources))]
        width, height = (int(random.integers(24, min(side, 480))) for side in source.size)
        left = int(random.integers(source.width - width))
        top = int(random.integers(source.height - height))
        photo = source.crop((left, top, left + width, top + height))
        options: dict[str, Any] = {}
        if suffix.lower() in (".jpg", ".jpeg"):
            exif = Image.Exif()
            exif[274] = int(random.integers(1, 9))
            options = {"quality": int(random.integers(60, 96)), "exif": exif}
        elif suffix == ".png":
            options = {"compress_level": 1}
        file = io.BytesIO()
        photo.save(file, Image.registered_extensions()[suffix.lower()], **options)
        return file.getvalue()

    return cut


def _write_bad(folder: Path, cut: Callable[[str], bytes]) -> dict[str, str]:
    from PIL import Image

    jpeg, png, webp = cut(".jpg"), cut(".png"), cut(".webp")
    clip = _clip(cut(".jpg"))
    broken = bytearray(cut(".png"))
    broken[len(broken) // 2] ^= 255
    sliver = io.BytesIO()
    Image.new("RGB", (1, 300), "teal").save(sliver, "PNG")
    files = {
        "cut short.jpg": (jpeg[: len(jpeg) * 2 // 3], "truncated"),
        "cut short.png": (png[: len(png) * 2 // 3], "truncated"),
        "cut short.webp": (webp[: len(webp) * 2 // 3], "truncated"),
        "cut in the header.jpg": (jpeg[:16], "truncated"),
        "empty.jpg": (b"", "empty"),
        "flipped bits.png": (bytes(broken), "corrupt"),
        "text.jpg": (b"This was never a photo.\n" * 40, "unsupported_format"),
        "cut short.mp4": (clip[: len(clip) * 2 // 3], "truncated"),
        "sliver.png": (sliver.getvalue(), "aspect_ratio"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: code for name, (_, code) in files.items()}


def _clip(photo: bytes) -> bytes:
    import av
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB").resize((128, 128)))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for shift in range(4):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, shift, 0), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
