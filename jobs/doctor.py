"""`doctor [INPUT ...] [--output OUT]`: what is broken on a machine or cluster, and what it can do.

Arguments are parsed by the standard library, and all else is imported when it is needed: on a
machine where packages are missing, that is what this command has to report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.doctor.capacity import Capacity, Node, capacities
from pipeline.doctor.cluster import examine_here, examine_nodes
from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options, WrongOptionError, absolute_encoder

_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}
_BROKEN, _WRONG_USE = 1, 2


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `python -m jobs.doctor`."""
    parsed = _parser().parse_args(args)
    try:
        options = _options(parsed)
        nodes: list[Node] = []
        for line in _examine(options, nodes, insecure=parsed.insecure_ray):
            print(f"patchflow doctor: {_printable(line)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("patchflow doctor: interrupted", file=sys.stderr)
        sys.exit(_BROKEN)
    except WrongOptionError as error:
        print(f"patchflow doctor: {_printable(str(error))}", file=sys.stderr)
        sys.exit(_WRONG_USE)
    except Exception as error:
        code = getattr(error, "exit_code", None)  # `pipeline.errors` may not import here.
        if code is None:
            raise
        print(f"patchflow doctor: {_printable(str(error))}", file=sys.stderr)
        sys.exit(code)
    found = capacities(nodes)
    if parsed.json:
        print(json.dumps(as_json(nodes, found), indent=1))
    else:
        show(nodes, found)
    sys.exit(_BROKEN if worst(nodes) == "broken" else 0)


def worst(nodes: Sequence[Node]) -> str:
    """The worst result of all findings."""
    results = {finding.result for node in nodes for finding in node.findings}
    return next(result for result in ("broken", "warning", "ok") if result in {*results, "ok"})


def as_json(nodes: Sequence[Node], found: Sequence[Capacity]) -> dict[str, object]:
    """All that was found, as one object."""
    return {
        "result": worst(nodes),
        "nodes": [asdict(node) for node in nodes],
        "capacity": [asdict(capacity) for capacity in found],
    }


def show(nodes: Sequence[Node], found: Sequence[Capacity]) -> None:
    """Prints a table a node, and what all nodes together can do."""
    out = Console(highlight=False)
    for node in nodes:
        out.print(Text(f"{_printable(node.name)}, {node.cpus:g} CPUs", "bold"))
        table = Table("step", "result", "figure, and what to do", box=None, padding=(0, 2, 0, 0))
        for finding in node.findings:
            table.add_row(*_row(finding))
        out.print(table)
        out.print()
    out.print(Text("What this cluster can do" if len(nodes) > 1 else "What it can do", "bold"))
    for capacity in found:
        rate = "unknown" if capacity.per_s is None else f"{capacity.per_s:,.1f} images/s"
        out.print(f"{capacity.images}: {rate}", markup=False)
        out.print(f"  limited by: {capacity.limit}", markup=False)
        ways = {
            "CPUs decode": capacity.by_decoding,
            "CPUs encode": capacity.by_cpus,
            "GPUs encode": capacity.by_gpus,
            "copies allow": capacity.by_copies,
        }
        known = ", ".join(f"{way} {rate_s:,.0f}/s" for way, rate_s in ways.items() if rate_s)
        out.print(f"  {known or 'nothing of it was measured'}")


def _row(finding: Finding) -> tuple[Text, Text, Text]:
    name = f"{finding.step} {finding.device}".strip()
    text = Text(_printable(finding.figure))
    if finding.advice:
        text.append(f"\n-> {_printable(finding.advice)}", "italic")
    return Text(name), Text(finding.result, _STYLES[finding.result]), text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="patchflow doctor",
        description="Check this machine, or with RAY_ADDRESS set every node of that cluster, "
        "in two minutes at most: drivers, packages, storage, what GPUs compute and how fast. "
        "Exit code 1 where something is broken.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="read one object of each")
    parser.add_argument(
        "--output", help="write, read, list and delete one small object below this output"
    )
    parser.add_argument(
        "--encoder",
        help="a preset or a checkpoint (default: the shape of large on a GPU, of tiny on a CPU)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--insecure-ray",
        action="store_true",
        help="join a Ray cluster even if it asks for no token",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, as the other jobs do."""
        self.exit(_WRONG_USE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        inputs=tuple(_canonical(location) for location in parsed.inputs),
        output=_canonical(parsed.output) if parsed.output else None,
        encoder=absolute_encoder(parsed.encoder) if parsed.encoder else None,
        device=parsed.device,
    )


def _canonical(location: str) -> str:
    try:
        from pipeline.location import canonical  # noqa: PLC0415
    except ImportError:  # The step that uses it will say so.
        return location
    return canonical(location)


def _examine(options: Options, nodes: list[Node], *, insecure: bool) -> Iterator[str]:
    if not os.environ.get("RAY_ADDRESS"):
        yield from examine_here(options, nodes)
        return
    from pipeline.cluster import quiet, ray_running  # noqa: PLC0415

    quiet()
    with ray_running(verbose=False, insecure=insecure):
        yield from examine_nodes(options, nodes)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


if __name__ == "__main__":
    main()
