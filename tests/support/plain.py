"""Files of any kind embedded one by one in plain Python, as their rows of an output."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


@dataclass(frozen=True)
class Expected:
    """The rows of one file in generation 0."""

    embedding: Row
    frames: list[Row]
    tokens: list[Row]


class PlainPython:
    """The tiny preset and the processors that a checkpoint's user would call.

    Args:
        max_pixels: Of a still, as `--max-pixels`.
        video_max_pixels: Of a clip, as `--video-max-pixels`.
        fps: Frames a second; the family's own where None.
        max_frames: Most frames of a clip; likewise.
        animated: `image` or `video`.
    """

    def __init__(
        self,
        *,
        max_pixels: int,
        video_max_pixels: int = 87_478_720,
        fps: float | None = None,
        max_frames: int | None = None,
        animated: Any = "image",
    ) -> None:
        import torch

        from encoder import load_encoder
        from processors import GlmgaImageProcessor, GlmgaVideoProcessor, MediaOptions

        torch.set_num_threads(1)
        self._model = load_encoder("tiny")
        # The reference's budgets count both frames that a still is repeated to.
        stills = {"shortest_edge": 112 * 112, "longest_edge": 2 * max_pixels}
        clips = {"shortest_edge": 112 * 112, "longest_edge": video_max_pixels}
        self._images = GlmgaImageProcessor(size=stills)
        self._videos = GlmgaVideoProcessor(size=clips, fps=fps, max_frames=max_frames)
        self._options = MediaOptions(sampling=self._videos.sampling, animated=animated)

    def __call__(self, path: Path) -> Expected:
        """What a file is embedded to."""
        import torch

        from processors import open_media

        data, stat = path.read_bytes(), path.stat()
        media = open_media(data, self._options)
        frames = [np.array(frame) for frame in media.frames]
        if media.info.kind == "video":
            made = self._videos.preprocess(frames, do_sample_frames=False)
            pixels, grids = made.pixel_values_videos, made.video_grid_thw
        else:
            still = self._images.preprocess(frames[0])
            pixels, grids = still.pixel_values, still.image_grid_thw
        grid = grids[0].tolist()
        with torch.inference_mode():
            tokens = self._model(pixels, [tuple(grid)])
        name = {"item_id": _digest(str(path).encode()), "uri": str(path)}
        info = media.info
        assert (info.height, info.width) == frames[0].shape[:2]
        shown = info.timestamps_s[::2] if info.timestamps_s is not None else [None]
        segments = [
            name | {"segment": number, "timestamp_s": seconds, "embedding": part.mean(0).tolist()}
            for number, (seconds, part) in enumerate(zip(shown, tokens.chunk(grid[0]), strict=True))
        ]
        return Expected(
            embedding=name
            | {
                "version": f"{stat.st_size}-{stat.st_mtime_ns}",
                "content_hash": _digest(data),
                "generation": 0,
                "width": info.width,
                "height": info.height,
                "num_frames": info.total_num_frames,
                "duration_s": info.duration_s,
                "grid_thw": grid,
                "num_tokens": len(tokens),
                "embedding": tokens.mean(0).tolist(),
            },
            frames=segments,
            tokens=[
                row | {"grid_h": grid[1], "grid_w": grid[2], "tokens": part.tolist()}
                for row, part in zip(segments, tokens.chunk(grid[0]), strict=True)
            ],
        )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def assert_segments(found: list[Row], expected: list[Row]) -> None:
    """Compares whole rows of `frames/` or `tokens/`: tokens are stored as float16."""
    values = {"embedding", "tokens"}
    keys = [{name: row[name] for name in row if name not in values} for row in found]
    assert keys == [{name: row[name] for name in row if name not in values} for row in expected]
    assert [set(row) for row in found] == [set(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours["embedding"], theirs["embedding"], rtol=1e-4, atol=1e-5)
        if "tokens" in ours:
            np.testing.assert_allclose(ours["tokens"], theirs["tokens"], rtol=2e-3, atol=1e-4)
