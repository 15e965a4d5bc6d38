"""`retry --output OUT [--code CODE]`: the failed items once more, as a generation of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.head_start import head_start

if TYPE_CHECKING:
    from pipeline.config import RetryConfig
    from pipeline.retry import RetryReport


def job(config: RetryConfig) -> int:
    """Embed failed items again, with the configuration that the output was made with."""
    from jobs.summary import print_summary  # noqa: PLC0415 (as below)
    from pipeline.retry import retry  # noqa: PLC0415

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
    with head_start():
        from jobs import console  # noqa: PLC0415 (beside the imports of the workers)
        from pipeline.config import RetryConfig  # noqa: PLC0415

        console.run(RetryConfig, job, "retry", args)


if __name__ == "__main__":
    main()
