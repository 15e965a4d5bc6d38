"""`jobs.embed` on GPUs that nobody has, and that fail in some way. Encoders compute on the CPU.

    python tests/faults/sick_gpu_run.py WAY FOLDER ARGS...

Each encoder process leaves a file in FOLDER/starts, each block that it passes on one in
FOLDER/passed_on. The ways:

    down       blocks do not compile; plain, the first pack hangs; with SDPA, the self-check fails
    one        the GPU with the lowest number computes something else in every way
    late       one, and it passes blocks on only once FOLDER/go is there
    killer     one, and an image that is all of one grey kills every process
    all        all compute something else in every way
    none       none does
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.head_start import head_start

# The one value of all patches of the image that kills.
MARK = 200


def note(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()} {time.monotonic_ns()}").touch()


def faulty(way: str, folder: Path) -> type:
    """`Encode` whose GPU fails. Ray sends the class itself: workers need no module."""
    from pipeline.encode import Encode

    class FaultyEncode(Encode):
        def __init__(self, *args: Any) -> None:
            note(folder / "starts")
            gpu = self._break()
            # Or the other GPU might have embedded everything before this one takes a block.
            while way == "one" and gpu != "0" and not (folder / "set_aside").exists():
                time.sleep(0.05)
            super().__init__(*args)
            if self._pass_on is not None:
                (folder / "set_aside").touch()

        def __call__(self, rows: Any) -> Any:
            if self._pass_on is not None:
                note(folder / "passed_on")
                while way == "late" and not (folder / "go").exists():
                    time.sleep(0.1)
            return super().__call__(rows)

        def _break(self) -> str:
            """Of this process, which has none but this encoder; returns the number of its GPU."""
            import ray

            import encoder
            from pipeline import packs, watchdog
            from pipeline.packs import PackedEncoder

            (gpu,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
            use_rung, check_results = PackedEncoder.use_rung, PackedEncoder.check_results
            run = encoder.PackRunner.start

            def use(own: PackedEncoder, rung: Any) -> None:
                use_rung(own, rung)
                if rung.compiled and way == "down":
                    raise encoder.CompileError("the encoder's blocks are not compiled: no compiler")

            def check(own: PackedEncoder) -> None:
                wrong = {
                    "down": own.rung.kernel == "sdpa",
                    "one": gpu == "0",
                    "late": gpu == "0",
                    "killer": gpu == "0",
                    "all": True,
                    "none": False,
                }
                if wrong[way]:
                    raise encoder.SelfCheckError("the encoder's tokens are off by 0.5")
                check_results(own)

            def start(own: Any, levels: Any, sizes: Any) -> Any:
                blank = not any(one.any() for one in levels)
                if way == "down" and own._model.attention == "varlen" and not blank:
                    threading.Event().wait()
                if way == "killer" and any((one == MARK).all() for one in levels):
                    os.kill(os.getpid(), signal.SIGKILL)
                return run(own, levels, sizes)

            watchdog.MOST_S = 3.0  # Of the first pack, at a speed that is not known yet.
            packs.MOST_S = 60.0
            own: Any = PackedEncoder
            own.use_rung, own.check_results = use, check
            runner: Any = encoder.PackRunner
            runner.start = start
            return str(gpu)

    return type("Encode", (FaultyEncode,), {})


def main(way: str, folder: str, *args: str) -> None:
    with head_start():
        from jobs import console, embed
        from pipeline.config import EmbedConfig

        def job(config: EmbedConfig) -> int:
            from pipeline import build  # Imports Ray, which the command has prepared.

            build.Encode = faulty(way, Path(folder))
            return embed.job(config)

        console.run(EmbedConfig, job, "embed", args)


if __name__ == "__main__":
    main(*sys.argv[1:])
