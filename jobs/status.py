"""`status --output OUT [--json]`: shards and rows committed, errors by code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from jobs import console
from pipeline.config import StatusConfig
from pipeline.status import GenerationStatus, status
from pipeline.storage import output_root


def job(config: StatusConfig) -> int:
    """Show how far an output is."""
    output = output_root(config.output)
    found = status(output)
    if config.json:
        states = [asdict(state) | {"open_items": state.open_items} for state in found]
        print(json.dumps({"output": output, "generations": states}, indent=1))
    else:
        _print(found)
    return 0


def _print(found: list[GenerationStatus]) -> None:
    table = Table("generation", "shards", "items", "embedded", "failed", "open", box=None)
    for state in found:
        table.add_row(
            f"g{state.generation:06d}",
            f"{state.shards_committed:,} of {state.shards:,}",
            f"{state.items:,}",
            f"{state.embedded:,}",
            f"{state.failed:,}",
            f"{state.open_items:,}",
        )
    out = Console(soft_wrap=True, highlight=False)
    out.print(table)
    errors: Counter[str] = Counter()
    for state in found:
        errors.update(state.errors)
    for code, count in errors.most_common():
        out.print(f"{count:>12,} {code}")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.status`."""
    console.run(StatusConfig, job, "status", args)


if __name__ == "__main__":
    main()
