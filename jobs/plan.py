"""`plan INPUT... [--output OUT]`: what would be done; with an output, frozen there."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import console
from pipeline.config import PlanConfig
from pipeline.errors import UsageError
from pipeline.plan import plan, plan_next
from pipeline.storage import output_root


def job(config: PlanConfig) -> int:
    """Show what would be embedded: items, bytes, shards. With --output, freeze it there."""
    if not config.inputs:
        raise UsageError("name an INPUT: a folder, a glob, an s3:// prefix or a Parquet manifest")
    output = output_root(config.output) if config.output else None
    if output is None:
        report, _ = plan(config, None, [])
    else:
        report, planned = plan_next(config, output)
    console.print_plan(report)
    if report.planned == 0:
        print("nothing to plan")
    elif output is None:
        print("nothing was written; --output OUT freezes the plan")
    else:
        console.say(f"frozen as generation {planned[-1].number} of {output}")
    return 0


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.plan`."""
    console.run(PlanConfig, job, "plan", args)


if __name__ == "__main__":
    main()
