"""The job on Daft, with transformers inside a class of its own.

python daft_frame.py CORPUS OUTPUT WEIGHTS [--concurrency N] [--process 0|1] [--batch-size N]
    [--threads N] [--decode pillow|daft]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import daft
import numpy as np
from command import DIMENSION, jpegs, read_command
from daft import DataType, col


class Embed:
    """Bytes, or pixels, to vectors."""

    def __init__(self, weights: str, threads: int) -> None:
        # Where the class runs, and nowhere else: it takes seconds.
        from glm4v import Encoder, Processor  # noqa: PLC0415

        self._processor, self._encoder = Processor(), Encoder(weights, threads)

    def of_bytes(self, blobs: daft.Series) -> list[np.ndarray]:
        """Of JPEGs."""
        return list(self._encoder(*self._processor(blobs.to_pylist())))

    def of_pixels(self, images: daft.Series) -> list[np.ndarray]:
        """Of what Daft has decoded."""
        return list(self._encoder(*self._processor.of_pixels(images.to_pylist())))


def main() -> None:
    """Embeds the corpus."""
    settings = read_command(
        __doc__, concurrency=2, process=0, batch_size=16, threads=1, decode="pillow"
    )
    data = col("path").download()
    if settings.decode == "daft":
        data = data.decode_image(mode="RGB")
    frame = daft.from_pydict({"path": jpegs(settings.corpus)}).with_column("data", data)
    embed = method(settings)
    frame = frame.with_column("embedding", embed(col("data"))).exclude("data")
    frame.write_parquet(str(settings.output))


def method(settings: Any) -> Any:
    """The class's method, as Daft runs it."""
    # Processes find this folder's modules by it.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    name = "of_bytes" if settings.decode == "pillow" else "of_pixels"
    # Daft 0.7.26 runs whatever takes or gives a type of its own, as images and embeddings are, in
    # threads of one process, without a word and though it is told to use processes.
    kind = DataType.fixed_size_list if settings.process else DataType.embedding
    batched = daft.method.batch(
        return_dtype=kind(DataType.float32(), DIMENSION), batch_size=settings.batch_size
    )
    setattr(Embed, name, batched(getattr(Embed, name)))
    use_process = bool(settings.process)
    stage = daft.cls(Embed, max_concurrency=settings.concurrency, use_process=use_process)
    return getattr(stage(settings.weights, settings.threads), name)


if __name__ == "__main__":
    main()
