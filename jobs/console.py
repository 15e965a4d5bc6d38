"""What every command line shares: parsing, one line for a failure, exit codes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn, TextIO, TypeVar

import tyro
from rich.filesize import decimal

from pipeline.cluster import quiet
from pipeline.errors import PatchflowError, UsageError, printable
from pipeline.known import PlanReport
from pipeline.states import States

Config = TypeVar("Config")

INTERRUPTED = 1
# What tyro says of a number that may be left out, and is none.
_NO_NUMBER = re.compile(r"no type matching \{None\}\|(\w+) could be instantiated from \[(.*)\]")


def run(
    config: type[Config], job: Callable[[Config], int], name: str, args: Sequence[str] | None
) -> NoReturn:
    """Parses `args` into `config`, runs `job` on it and ends the process with its exit code.

    What a user can mend is one line on standard error and the exit code of its exception;
    everything else is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    # Python would look for garbage in all that was imported before it ends: a third of a second.
    atexit.register(gc.freeze)
    try:
        parsed = _parse(config, name, job.__doc__, args)
        if not getattr(parsed, "verbose", False):
            quiet()
        code = job(parsed)
    except PatchflowError as error:
        if "--verbose" in sys.argv:
            say(*traceback.format_exc().splitlines(), file=sys.stderr)
        say(f"patchflow {name}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print(
            f"patchflow {name}: interrupted; what is committed stays, and the same command resumes",
            file=sys.stderr,
        )
        code = INTERRUPTED
    sys.exit(code)


def _parse(
    config: type[Config], name: str, description: str | None, args: Sequence[str] | None
) -> Config:
    """Parses; what tyro says of a wrong command in a box of several lines becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(config, prog=f"patchflow {name}", description=description, args=args)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UsageError(f"{_first_words(box.getvalue())}; see patchflow {name} --help") from None


def _first_words(box: str) -> str:
    """What a box of tyro's says between its title and its first rule, as one line."""
    words = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╰╯ ")
        if not text.strip("─") or text.startswith(("Got errors", "Argument helptext")):
            break
        words.append(" ".join(text.split()))
    return _NO_NUMBER.sub(r"\2 is no \1", " ".join(words).rstrip(".:"))


def say(*lines: str, file: TextIO | None = None) -> None:
    """Prints lines that may hold what strangers wrote: a terminal acts on none of it."""
    for line in lines:
        print(printable(line), file=file)


def print_plan(report: PlanReport) -> None:
    """What the inputs came to, in a few lines; nothing where none were looked at."""
    if report.planned:
        changed = f" and {report.changed:,} changed" if report.changed else ""
        known = f", {report.unchanged:,} known" if report.unchanged else ""
        size = decimal(report.size_bytes)
        print(f"{report.new:,} new{changed} items{known}: {size} in {report.shards:,} shards")
    elif report.unchanged:
        print(f"{report.unchanged:,} items, all known and unchanged")
    if report.duplicates:
        print(f"{report.duplicates:,} items were named more than once and are planned once")
    if report.skipped.by_suffix:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.skipped.by_suffix.most_common(5))
        say(f"skipped files that are neither images nor videos by name: {kinds}")
    if report.skipped.links:
        print(
            f"left out {report.skipped.links:,} symbolic links that lead out of the inputs; "
            "--follow-links goes there"
        )
    sys.stdout.flush()


def in_words(items: States) -> str:
    """What became of every item, over all generations."""
    return (
        f"{items.items:,} items: {items.embedded:,} embedded, {items.failed:,} failed, "
        f"{items.open:,} open"
    )


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
