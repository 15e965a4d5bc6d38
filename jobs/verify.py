"""`verify --output OUT [--recompute N]`: holds what is stored against the invariants; exit 1 on a
breach."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence

from jobs import console
from pipeline.config import VerifyConfig
from pipeline.storage import output_root
from pipeline.verify import Audit, verify

BROKEN = 1


def job(config: VerifyConfig) -> int:
    """Audit an output: every object whole, every item exactly once, every vector of one kind."""
    output = output_root(config.output)
    audit = verify(output)
    _print(audit)
    breaches = audit.breaches
    if config.recompute and not breaches:
        seed = secrets.randbits(32) if config.seed is None else config.seed
        breaches = _recompute(output, config.recompute, seed)
    for breach in breaches:
        console.say(f"BROKEN {breach}", file=sys.stderr)
    if breaches:
        return BROKEN
    print("every invariant holds")
    return 0


def _print(audit: Audit) -> None:
    print(
        f"{audit.shards_committed:,} of {audit.shards:,} shards committed: {audit.rows:,} rows, "
        f"{audit.embedded:,} embedded, {audit.failed:,} failed"
    )
    if audit.generations > 1 and not audit.breaches:
        print(f"over {audit.generations} generations {console.in_words(audit.items)}")
    if audit.unfinished:
        print(f"{len(audit.unfinished):,} objects of shards that are not committed yet")
    if audit.leftovers:
        print(f"{len(audit.leftovers):,} objects that runs left behind and nobody reads")


def _recompute(output: str, count: int, seed: int) -> list[str]:
    from pipeline.recompute import recompute  # noqa: PLC0415 (it needs torch)

    found = recompute(output, count, seed)
    print(
        f"{found.compared:,} items embedded again and compared, {found.not_comparable:,} not "
        f"comparable (changed, gone, or over the limits); --seed {seed} chooses the same ones"
    )
    return found.breaches


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.verify`."""
    console.run(VerifyConfig, job, "verify", args)


if __name__ == "__main__":
    main()
