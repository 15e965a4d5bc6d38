"""Clips without an engine: every frame is decoded, and those that transformers samples are kept.

python video_loop.py CLIPS OUTPUT WEIGHTS [--threads N] [--decode-threads N]
"""

from __future__ import annotations

import av
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from command import read_command
from glm4v import MAX_PIXELS, Encoder
from transformers.models.glmga.video_processing_glmga import GlmgaVideoProcessor
from transformers.video_utils import VideoMetadata

FRAMES_BUDGET = 16


def main() -> None:
    """Embeds the clips."""
    settings = read_command(__doc__, threads=1, decode_threads=2)
    size = {"shortest_edge": 112 * 112, "longest_edge": FRAMES_BUDGET * MAX_PIXELS}
    processor = GlmgaVideoProcessor(size=size)
    encoder = Encoder(settings.weights, settings.threads)
    paths = sorted(map(str, settings.corpus.resolve().glob("*.mp4")))
    vectors = []
    for path in paths:
        frames, metadata = sampled_frames(path, processor, settings.decode_threads)
        out = processor(
            frames, video_metadata=metadata, do_sample_frames=False, return_tensors="pt"
        )
        vectors.append(encoder.of_clip(out["pixel_values_videos"], out["video_grid_thw"][0]))
    settings.output.mkdir(parents=True)
    table = pa.table({"path": paths, "embedding": [vector.tolist() for vector in vectors]})
    pq.write_table(table, settings.output / "clips.parquet")


def sampled_frames(
    path: str, processor: GlmgaVideoProcessor, decode_threads: int
) -> tuple[torch.Tensor, VideoMetadata]:
    """uint8 `[frames, 3, height, width]`, and what is known of the clip."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = decode_threads
        fps = float(stream.average_rate)
        metadata = VideoMetadata(
            total_num_frames=stream.frames, fps=fps, duration=stream.frames / fps
        )
        wanted = processor.sample_frames(metadata).tolist()
        chosen = set(wanted)
        # All of them are decoded; only those that are kept are turned into RGB.
        kept = {
            index: torch.from_numpy(frame.to_ndarray(format="rgb24"))
            for index, frame in enumerate(container.decode(stream))
            if index in chosen
        }
    frames = torch.stack([kept[index] for index in wanted])
    return frames.permute(0, 3, 1, 2).contiguous(), metadata


if __name__ == "__main__":
    main()
