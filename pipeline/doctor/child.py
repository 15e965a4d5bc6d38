"""The program of a step's process: findings as lines of JSON on standard output.

    python -m pipeline.doctor.child MODULE:FUNCTION OPTIONS

The last line, `END`, says that the step came to its end. What libraries print goes to standard
error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options

END = "end"


def main() -> None:
    """Runs one step."""
    target, options = sys.argv[1:]
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        module, _, name = target.partition(":")
        step: Callable[[Options], Iterator[Finding]] = getattr(import_module(module), name)
        for finding in step(Options.from_json(options)):
            print(finding.to_json(), file=out, flush=True)
        print(END, file=out, flush=True)


if __name__ == "__main__":
    main()
