"""The job on Ray Data, as its guide to batch inference leads to, with transformers inside.

    python ray_data.py CORPUS OUTPUT WEIGHTS [--stages fused|split] [--actors N] [--batch-size N]
        [--threads N] [--blocks N]

Fused, each actor preprocesses and encodes; split, one preprocesses and `--actors` encode. Actors
import torch and transformers, which takes seconds; the driver does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from command import jpegs, read_command
from ray.data import ActorPoolStrategy


class Preprocess:
    """Bytes to patches, an image at a time."""

    def __init__(self) -> None:
        import torch  # noqa: PLC0415
        from glm4v import Processor  # noqa: PLC0415

        torch.set_num_threads(1)
        self._processor = Processor()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row of a path and bytes."""
        pixel_values, grid_thw = self._processor([row["bytes"]])
        return {"path": row["path"], "patches": pixel_values.numpy(), "grid": grid_thw[0].numpy()}


class Encode:
    """Patches to vectors."""

    def __init__(self, weights: str, threads: int) -> None:
        from glm4v import Encoder  # noqa: PLC0415

        self._encoder = Encoder(weights, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of paths, patches and grids."""
        import torch  # noqa: PLC0415

        patches = torch.from_numpy(np.concatenate(list(batch["patches"])))
        grids = torch.from_numpy(np.stack(list(batch["grid"])))
        return {"path": batch["path"], "embedding": self._encoder(patches, grids)}


class Embed:
    """Bytes to vectors."""

    def __init__(self, weights: str, threads: int) -> None:
        from glm4v import Encoder, Processor  # noqa: PLC0415

        self._processor, self._encoder = Processor(), Encoder(weights, threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of paths and bytes."""
        vectors = self._encoder(*self._processor(list(batch["bytes"])))
        return {"path": batch["path"], "embedding": vectors}


def main() -> None:
    """Embeds the corpus."""
    settings = read_command(__doc__, stages="fused", actors=2, batch_size=16, threads=1, blocks=64)
    ray.init(logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Actors hold their cores for good: what is left must do for reading and writing.
    spare = 0.1
    rows = ray.data.read_binary_files(
        jpegs(settings.corpus),
        include_paths=True,
        override_num_blocks=settings.blocks or None,
        num_cpus=spare,
    )
    stage: Any = Embed
    if settings.stages == "split":
        rows = rows.map(Preprocess, compute=ActorPoolStrategy(size=1), num_cpus=1 - spare)
        stage = Encode
    rows.map_batches(
        stage,
        fn_constructor_args=(settings.weights, settings.threads),
        batch_size=settings.batch_size,
        compute=ActorPoolStrategy(size=settings.actors),
        num_cpus=1 - spare,
    ).write_parquet(str(settings.output), ray_remote_args={"num_cpus": spare})


if __name__ == "__main__":
    main()
