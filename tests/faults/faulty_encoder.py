"""Embeds one folder again and again, on one Ray, with an encoder that fails in some way each time.

    python tests/faults/faulty_encoder.py PHOTOS FOLDER WAY...

A way to fail is the name of a folder below FOLDER, which receives the `output`, a file in
`starts` and one in `faults` for every encoder process and every fault, and what the run told as
`told.json`. The encoder that is `well` resumes what the `sick` one has begun, the one that is
`right` what the `wrong` one has.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.cluster import quiet

quiet()

import torch  # noqa: E402 (Ray and what imports it come after `quiet`)

import encoder  # noqa: E402
import encoder.blocks  # noqa: E402
from encoder.attention import Segments, attend  # noqa: E402
from encoder.self_check import known_input  # noqa: E402
from pipeline import embed  # noqa: E402
from pipeline.cluster import ray_running  # noqa: E402
from pipeline.config import EmbedConfig  # noqa: E402
from pipeline.encode import Encode  # noqa: E402
from pipeline.errors import PatchflowError  # noqa: E402
from pipeline.manifest import committed  # noqa: E402

# The one value of all patches of the image that some faults come with.
MARK = 200
RESUMED = {"well": "sick", "right": "wrong"}
STICKY = "CUDA error: an illegal memory access was encountered\nand what to do about it"


class FaultyModel:
    """An encoder that fails as `way` says; blank and known images, the stage's own, it takes."""

    def __init__(self, model: Any, folder: Path, way: str) -> None:
        self._model, self._folder, self._way = model, folder, way
        self.config, self.attention = model.config, model.attention

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._model.state_dict()

    def forward_features(self, levels: torch.Tensor, grids: list[Any]) -> Any:
        marked = bool((levels == MARK).all(1).any())
        if levels.any() and grids != known_input(self.config)[1]:
            getattr(self, self._way)(marked, len(grids))
        return self._model.forward_features(levels, grids)

    def sick_twice(self, marked: bool, segments: int) -> None:
        if self._note("faults") <= 2:
            raise RuntimeError(STICKY)

    def sick(self, marked: bool, segments: int) -> None:
        raise RuntimeError(STICKY)

    def killed_by_one(self, marked: bool, segments: int) -> None:
        if marked:
            self._note("faults")
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_once(self, marked: bool, segments: int) -> None:
        if self._note("faults") == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def full(self, marked: bool, segments: int) -> None:
        if marked or segments > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(self, marked: bool, segments: int) -> None:
        self._note("faults")

    def right(self, marked: bool, segments: int) -> None:
        pass

    def well(self, marked: bool, segments: int) -> None:
        pass

    def _note(self, kind: str) -> int:
        return note(self._folder / kind)


def attend_to_all(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    """Attention that a pack's segments leak into."""
    return attend(q, k, v, Segments.of([len(q)], q.device))


def note(folder: Path) -> int:
    """Adds a file; returns how many there are. Processes come one after the other."""
    folder.mkdir(exist_ok=True)
    (folder / str(time.monotonic_ns())).touch()
    return len(list(folder.iterdir()))


class FaultyEncode(Encode):
    """The stage, whose processes load the faulty model, or end before they do."""

    folder: Path
    way: str

    def __init__(self, *args: Any) -> None:
        note(self.folder / "starts")
        load = encoder.load_encoder
        encoder.load_encoder = self._load(load)
        super().__init__(*args)

    def _load(self, load: Any) -> Any:
        def loaded(*args: Any, **options: Any) -> Any:
            if self.way == "dead_at_start":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.way == "wrong":
                encoder.blocks.attend = attend_to_all
            return FaultyModel(load(*args, **options), self.folder, self.way)

        return loaded


def run(photos: str, folder: Path, output: Path, way: str) -> None:
    """One command, as `jobs.embed` would run it."""
    from pipeline import build  # Imports Ray, which `ray_running` prepares.

    folder.mkdir()
    build.Encode = type("Encode", (FaultyEncode,), {"folder": folder, "way": way})
    config = EmbedConfig(
        inputs=(photos,),
        output=str(output),
        shard_rows=8,
        max_pixels=50176,
        encoder_actors=1,
        preprocess_actors=1,
    )
    code, line = 0, ""
    try:
        embed.embed(config, on_plan=lambda report: None)
    except PatchflowError as error:
        code, line = error.exit_code, str(error)
    told = {"code": code, "line": line, "committed": len(committed(str(output)))}
    (folder / "told.json").write_text(json.dumps(told))


def joined(*, verbose: bool, device: str) -> contextlib.AbstractContextManager[None]:
    """Stands for `ray_running` where it runs already."""
    return contextlib.nullcontext()


def main(photos: str, folder: str, *ways: str) -> None:
    with ray_running(verbose=False):
        embed.ray_running = joined
        for way in ways:
            output = Path(folder, RESUMED.get(way, way), "output")
            run(photos, Path(folder, way), output, way)
            gc.collect()  # A failed run's actors end with the last reference to it.


if __name__ == "__main__":
    main(*sys.argv[1:])
