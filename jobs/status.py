"""`status --output OUT [--json]`: shards and rows committed, and what became of every item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs import console
from pipeline.config import StatusConfig
from pipeline.status import Status, status
from pipeline.storage import output_root


def job(config: StatusConfig) -> int:
    """Show how far an output is."""
    output = output_root(config.output)
    found = status(output)
    if config.json:
        print(json.dumps({"output": output} | _as_json(found), indent=1))
    else:
        _print(found)
    return 0


def _as_json(found: Status) -> dict[str, Any]:
    items = found.items
    return {
        "generations": [
            asdict(state) | {"open_items": state.open_items} for state in found.generations
        ],
        "items": {
            "items": items.items,
            "embedded": items.embedded,
            "failed": items.failed,
            "open": items.open,
            "errors": dict(items.errors),
        },
    }


def _print(found: Status) -> None:
    table = Table("generation", "shards", "items", "embedded", "failed", "open", box=None)
    for state in found.generations:
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
    if len(found.generations) > 1:
        out.print(console.in_words(found.items))
    for code, count in found.items.errors.most_common():
        console.say(f"{count:>12,} {code}")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `python -m jobs.status`."""
    console.run(StatusConfig, job, "status", args)


if __name__ == "__main__":
    main()
