"""The job on Daft, with transformers inside a class of its own.

python daft_frame.py CORPUS OUTPUT WEIGHTS [--concurrency N] [--process 0|1] [--batch-size N]
    [--threads N] [--decode pillow|daft]
"""

from __future__ import annotations

import daft
import numpy as np
from command import jpegs, read_command
from daft import DataType, col
from glm4v import DIMENSION, Encoder, Processor

VECTOR = DataType.embedding(DataType.float32(), DIMENSION)


class Embed:
    """Bytes, or pixels, to vectors."""

    def __init__(self, weights: str, threads: int) -> None:
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
        __doc__, concurrency=2, process=1, batch_size=8, threads=1, decode="pillow"
    )
    name = "of_bytes" if settings.decode == "pillow" else "of_pixels"
    batched = daft.method.batch(return_dtype=VECTOR, batch_size=settings.batch_size)
    setattr(Embed, name, batched(getattr(Embed, name)))
    stage = daft.cls(
        Embed, max_concurrency=settings.concurrency, use_process=bool(settings.process)
    )(settings.weights, settings.threads)
    frame = daft.from_pydict({"path": jpegs(settings.corpus)})
    data = col("path").download()
    if settings.decode == "daft":
        data = data.decode_image(mode="RGB")
    frame = frame.with_column("data", data).with_column(
        "embedding", getattr(stage, name)(col("data"))
    )
    frame.exclude("data").write_parquet(str(settings.output))


if __name__ == "__main__":
    main()
