"""`verify --output OUT`: holds what is stored against the invariants; exit 1 on a breach."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import console
from pipeline.config import OutputConfig
from pipeline.storage import output_root
from pipeline.verify import verify

BROKEN = 1


def job(config: OutputConfig) -> int:
    """Audit an output: every object whole, every item exactly once, every vector of one kind."""
    audit = verify(output_root(config.output))
    print(
        f"{audit.shards_committed:,} of {audit.shards:,} shards committed: {audit.rows:,} items, "
        f"{audit.embedded:,} embedded, {audit.failed:,} failed"
    )
    if audit.unfinished:
        print(f"{len(audit.unfinished):,} objects of shards that are not committed yet")
    for breach in audit.breaches:
        print(f"BROKEN {breach}", file=sys.stderr)
    if audit.breaches:
        return BROKEN
    print("every invariant holds")
    return 0


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.verify`."""
    console.run(OutputConfig, job, "verify", args)


if __name__ == "__main__":
    main()
