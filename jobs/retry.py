"""`retry --output OUT [--code CODE]`: the failed items once more, as a generation of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import console
from jobs.embed import print_summary
from pipeline.config import RetryConfig
from pipeline.retry import RetryReport, retry


def job(config: RetryConfig) -> int:
    """Embed failed items again, with the configuration that the output was made with."""
    summary = retry(config, on_plan=print_plan)
    if summary is not None and summary.shards:
        print_summary(summary)
    return 0


def print_plan(report: RetryReport) -> None:
    """What is tried again, in a line."""
    if not report.errors:
        print("nothing to retry")
    else:
        codes = ", ".join(f"{code} {count:,}" for code, count in report.errors.most_common())
        changed = f"; {report.changed:,} of them changed" if report.changed else ""
        print(
            f"{report.errors.total():,} failed items in {report.shards:,} shards: {codes}{changed}"
        )
    sys.stdout.flush()


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.retry`."""
    console.run(RetryConfig, job, "retry", args)


if __name__ == "__main__":
    main()
