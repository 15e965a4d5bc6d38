"""One step in a process of its own, with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pipeline.doctor.child import END
from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options

ROOT = Path(__file__).parents[2]
# A step that takes longer is named while it runs.
_PATIENCE_S = 5.0
_STOP_S = 0.5  # How often `stop` is looked at.
# How long a killed process may take to end: one in a driver's call may never.
_KILLED_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the examination.

    Attributes:
        name: As the table has it.
        target: `MODULE:FUNCTION`.
        deadline_s: Seconds after which its process is killed.
        late: What a missed deadline means.
        hint: What to do about one.
    """

    name: str
    target: str
    deadline_s: float
    late: Result = "broken"
    hint: str = "see what it waits for"


def run_step(
    step: Step,
    options: Options,
    *,
    end_s: float,
    stop: threading.Event,
    say: Callable[[str], None],
    device: str = "",
    env: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Runs a step to its end or its deadline.

    Args:
        step: Which.
        options: Its argument.
        end_s: When the whole examination ends, on the clock `time.monotonic`.
        stop: Set to end the step at once, as at its deadline.
        say: Called with a line once the step takes over five seconds.
        device: What the step's findings are about.
        env: Variables to set in the process's environment.

    Returns:
        What it found; also where it crashed, hung, or printed something else, which is one more
        finding.
    """
    start = time.monotonic()
    deadline_s = min(step.deadline_s, end_s - start)
    if deadline_s < 1:
        return [_lost(step, device, "left out: the time was over", "run it again", "warning")]
    name = f"{step.name} {device}".strip()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.doctor.child", step.target, options.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            code = _wait(process, start + deadline_s, stop, lambda text: say(f"{name}: {text}"))
        finally:
            _kill(process)
        findings, ended = _read(step, device, out)
        if code is None:
            figure = f"did not end within {deadline_s:.0f} s"
            findings.append(_lost(step, device, figure, step.hint, step.late))
        elif not ended:
            figure = f"its process ended early: {_reason(code)}"
            findings.append(_lost(step, device, figure, _last_line(err)))
    return findings


def _wait(
    process: subprocess.Popen[bytes],
    end_s: float,
    stop: threading.Event,
    say: Callable[[str], None],
) -> int | None:
    """Returns the exit code, None where it does not end in time."""
    start = time.monotonic()
    say_s = _PATIENCE_S
    while (now := time.monotonic()) < end_s and not stop.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(_STOP_S, end_s - now))
        if (taken_s := time.monotonic() - start) >= say_s:
            say(f"running for {taken_s:.0f} s")
            say_s = 2 * taken_s
    return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its children, which have a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILLED_S)


def _read(step: Step, device: str, out: IO[bytes]) -> tuple[list[Finding], bool]:
    """Returns what the process wrote, and whether it came to its end."""
    out.seek(0)
    findings: list[Finding] = []
    for line in out.read().decode(errors="replace").splitlines():
        if line == END:
            return findings, True
        try:
            finding = Finding.from_json(line)
        except ValueError:
            figure = f"its process wrote no finding: {line[:60]!r}"
            return [*findings, _lost(step, device, figure, "this is a bug of patchflow's")], True
        findings.append(replace(finding, device=finding.device or device))
    return findings, False


def _lost(step: Step, device: str, figure: str, advice: str, result: Result = "broken") -> Finding:
    return Finding(step=step.name, result=result, figure=figure, advice=advice, device=device)


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _last_line(err: IO[bytes]) -> str:
    err.seek(0)
    lines = err.read().decode(errors="replace").strip().splitlines()
    return first_line(lines[-1]) if lines else "it said nothing"
