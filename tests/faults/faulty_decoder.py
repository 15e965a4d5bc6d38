"""Runs `embed` with decoder processes that hostile files have in their hands.

    python tests/faults/faulty_decoder.py NOTES ARGS...

ARGS are those of `embed`. What files can do is in `tests.processors.hostile_template`. Every
preprocessing process adds a file, by its id, to the folder NOTES, and a line to it for every block:
how many memory files and processes it has then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from jobs import embed
from pipeline import build
from pipeline.preprocess import Preprocess, PreprocessConfig
from processors.sandbox import Decoder


class WatchedPreprocess(Preprocess):
    """The stage, with the hostile template."""

    notes: Path

    def __init__(self, config: PreprocessConfig, progress: Any) -> None:
        self._note = self.notes / str(os.getpid())
        self._note.touch()
        Decoder._template_module = "tests.processors.hostile_template"
        super().__init__(config, progress)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = super().__call__(block)
        with self._note.open("a") as file:
            print(memory_files(), len(psutil.Process().children(recursive=True)), file=file)
        return rows


def memory_files() -> int:
    """How many this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("/memfd:")
        except FileNotFoundError:
            continue  # Closed meanwhile.
    return count


if __name__ == "__main__":
    build.Preprocess = type("Preprocess", (WatchedPreprocess,), {"notes": Path(sys.argv[1])})
    embed.main(sys.argv[2:])
