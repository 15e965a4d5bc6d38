"""`jobs.embed` with an encoder stage that does one more thing, named on the command line.

    python tests/pipeline/fake_gpu_run.py WAY FOLDER ARGS...

Each encoder process leaves a file in FOLDER/starts. The ways:

    together   the first 16 calls of a process wait for each other
    held       the third call of a process, and those after it, wait until FOLDER/go is there
    eager      held, and nodes that have come are used three seconds later
    blind      torch sees no GPU
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.head_start import head_start


def instrumented(way: str, folder: Path) -> type:
    """`Encode` that does what `way` says. Ray sends the class itself: workers need no module."""
    from pipeline.encode import Encode

    class Instrumented(Encode):
        def __init__(self, *args: Any) -> None:
            if way == "blind":
                del os.environ["PATCHFLOW_TEST_GPUS"]
            (folder / "starts").mkdir(exist_ok=True)
            (folder / "starts" / str(os.getpid())).touch()
            self._number = itertools.count(1)
            self._barrier = threading.Barrier(16)
            super().__init__(*args)

        def __call__(self, rows: Any) -> Any:
            number = next(self._number)
            if way == "together" and number <= 16:
                self._barrier.wait(60)  # Raises if the others do not come, which fails the run.
            while way in ("held", "eager") and number > 2 and not (folder / "go").exists():
                time.sleep(0.05)
            return super().__call__(rows)

    return type("Encode", (Instrumented,), {})


def main(way: str, folder: str, *args: str) -> None:
    with head_start():
        from jobs import console, embed
        from pipeline.config import EmbedConfig

        def job(config: EmbedConfig) -> int:
            from pipeline import brake, build  # Imports Ray, which the command has prepared.

            if way == "eager":
                brake._CAME_S = 3.0
            build.Encode = instrumented(way, Path(folder))
            return embed.job(config)

        console.run(EmbedConfig, job, "embed", args)


if __name__ == "__main__":
    main(*sys.argv[1:])
