"""The job without an engine: one process, a batch after the other.

    python plain_loop.py CORPUS OUTPUT WEIGHTS [--batch-size N] [--threads N] [--ahead N]

With --ahead, that many threads preprocess batches while the loop encodes another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from command import jpegs, read_command
from glm4v import Encoder, Processor

FILE_ROWS = 256

Batch = tuple[list[str], torch.Tensor, torch.Tensor]


def main() -> None:
    """Embeds the corpus."""
    settings = read_command(__doc__, batch_size=16, threads=1, ahead=1)
    files = jpegs(settings.corpus)
    encoder = Encoder(settings.weights, settings.threads)
    settings.output.mkdir(parents=True)
    paths: list[str] = []
    vectors: list[pa.Array] = []
    written = 0
    for names, *patches in preprocessed(files, settings.batch_size, settings.ahead):
        paths += names
        vectors += list(encoder(*patches))
        if len(paths) >= FILE_ROWS or written + len(paths) == len(files):
            table = pa.table({"path": paths, "embedding": [vector.tolist() for vector in vectors]})
            pq.write_table(table, settings.output / f"{written:06d}.parquet")
            written += len(paths)
            paths, vectors = [], []


def preprocessed(files: list[str], batch_size: int, ahead: int) -> Iterator[Batch]:
    """Batches in order, `ahead` of them in the making."""
    processor = Processor()

    def preprocess(names: list[str]) -> Batch:
        return names, *processor([Path(name).read_bytes() for name in names])

    batches = [files[at : at + batch_size] for at in range(0, len(files), batch_size)]
    if not ahead:
        yield from map(preprocess, batches)
        return
    with ThreadPoolExecutor(ahead) as pool:
        making: deque[Future[Batch]] = deque()
        for batch in batches:
            making.append(pool.submit(preprocess, batch))
            if len(making) > ahead:
                yield making.popleft().result()
        while making:
            yield making.popleft().result()


if __name__ == "__main__":
    main()
