"""What a run says at its end."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from jobs import console
from pipeline.errors import printable
from pipeline.location import join
from pipeline.stages import limit
from pipeline.summary import Summary


def print_summary(summary: Summary) -> None:
    """The end of a run, for people, on standard output."""
    out = Console(soft_wrap=True, highlight=False)
    if not summary.shards:
        console.say(f"nothing to do: {summary.scope} of {summary.output} is committed")
        return
    rows = [
        ("embedded", f"{summary.embedded:,} items, {summary.tokens:,} tokens"),
        ("failed", _failures(summary)),
        ("shards", f"{summary.shards:,} committed"),
        *([("of them", _elsewhere(summary))] if summary.shards_elsewhere else []),
        ("time", f"{summary.seconds:.1f} s, {summary.items / summary.seconds:,.1f} items/s"),
    ]
    if summary.steady_items_s:
        rate = summary.tokens / summary.items * summary.steady_items_s if summary.items else 0
        rows.append(("steady", f"{summary.steady_items_s:,.1f} items/s, {rate:,.0f} tokens/s"))
    if summary.stages is not None:
        rows += summary.stages.lines().items()
    rows += [
        ("limited by", limit(summary.stages, items=summary.items, seconds=summary.seconds)),
        ("pack fill", f"{summary.fill:.0%} of the token budget"),
        ("output", summary.output),
        ("read it", f"pandas.read_parquet({join(summary.output, 'embeddings')!r})"),
    ]
    rows += [("encoders", line) for line in summary.remarks]
    for name, value in rows:
        out.print(f"[bold]{name:>10}[/bold]  {escape(printable(value))}")
    if summary.encoder.random:
        out.print(
            f"[bold yellow]   WARNING[/bold yellow]  the {summary.encoder.location!r} preset has "
            "RANDOM weights: these vectors mean nothing; give --encoder a checkpoint"
        )


def _elsewhere(summary: Summary) -> str:
    return (
        f"{summary.shards_elsewhere:,} by another run on this output: nothing is harmed, but work "
        "was done twice; give each driver its own --shards"
    )


def _failures(summary: Summary) -> str:
    if not summary.failed:
        return "0 items"
    codes = ", ".join(f"{code} {count:,}" for code, count in summary.errors.most_common())
    return f"{summary.failed:,} items: {codes}; see {join(summary.output, 'errors/')}"
