"""`patchflow NAME ...`: the installed command; each name is a job of its own."""

from __future__ import annotations

import sys
from importlib import import_module

JOBS = {
    "embed": "plan what is new and embed it",
    "plan": "show what would be embedded, or freeze it",
    "retry": "embed failed items again",
    "status": "show how far an output is",
    "verify": "audit an output",
    "doctor": "check a machine or a cluster",
}


def main() -> None:
    """Hands over to the job that is named; each imports only what it needs."""
    name, args = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in JOBS:
        import_module(f"jobs.{name}").main(args)
        return
    lines = [f"  patchflow {job:<8}{text}" for job, text in JOBS.items()]
    text = "\n".join(["usage: patchflow JOB [OPTIONS]; each JOB has --help of its own", *lines])
    if name in ("-h", "--help"):
        print(text)
        return
    print(f"patchflow: there is no job {name!r}\n{text}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
