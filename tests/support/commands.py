"""Commands as a person runs them, in processes of their own.

Every one of them, and all that it starts, carries a mark in its environment, by which it is found
again and ended by its own id. Decoder processes do not carry it: they are found as descendants,
and known from then on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = "PATCHFLOW_TEST_RUN"
# Far beyond what a run takes: a hang fails, a busy machine does not.
PATIENCE_S = 180.0


def marked(mark: str) -> list[psutil.Process]:
    """Every process alive that carries `mark`, with its descendants, oldest first."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
    alive = []
    for process in filter(is_alive, found):
        with contextlib.suppress(psutil.Error):
            alive.append((process.create_time(), process.pid, process))
    return [process for _, _, process in sorted(alive, key=lambda known: known[:2])]


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and is no zombie."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_marked(mark: str) -> None:
    """`kill -9` of every marked process, until none is left."""
    while found := marked(mark):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True, repr=False)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float
    most_processes: int
    left_behind: list[str]

    def __repr__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"


class Command:
    """A command that is running, in a session of its own, as a terminal's foreground job is."""

    def __init__(self, args: Iterable[object], env: dict[str, str], logs: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._logs = [logs / f"{self.mark}.{name}" for name in ("out", "err")]
        self._most = 0
        self._seen: set[psutil.Process] = set()
        self._started = time.monotonic()
        with self._logs[0].open("wb") as out, self._logs[1].open("wb") as err:
            self.process = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=env | {MARK: self.mark},
                start_new_session=True,
            )

    def family(self, title: str = "") -> list[psutil.Process]:
        """The command's processes, all of them or those whose title begins with `title`."""
        found = marked(self.mark)
        self._seen.update(found)
        self._most = max(self._most, len(found))
        if not title:
            return found
        titled = []
        for process in found:
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    titled.append(process)
        return titled

    def wait_until(self, what: str, condition: Callable[[], object]) -> None:
        """Polls `condition`; fails once it can no longer become true, with the output so far."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            ended = self.process.poll() is not None
            if (ended and not condition()) or time.monotonic() > deadline:
                pytest.fail(
                    f"{'ended' if ended else 'gave up'} waiting until {what}\n{self.ended()}"
                )
            time.sleep(0.01)

    def output(self) -> str:
        """What it has written to standard output so far."""
        return self._logs[0].read_text()

    def errors(self) -> str:
        """What it has written to standard error so far."""
        return self._logs[1].read_text()

    def kill(self) -> Done:
        """`kill -9` of the whole process tree, the driver first."""
        self.process.kill()
        kill_marked(self.mark)
        return self.ended()

    def interrupt(self, number: signal.Signals) -> Done:
        """Ctrl-C, which reaches the foreground group, or a SIGTERM to the driver."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self._started = time.monotonic()
        return self.ended()

    def ended(self) -> Done:
        """Waits for the end; what is still there a few seconds later was left behind."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.family()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
        seconds = time.monotonic() - self._started
        hung = self.process.poll() is None
        deadline = time.monotonic() + (0 if hung else 5)
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = [f"{process.pid} {title_of(process)[:80]}" for process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        kill_marked(self.mark)
        code = self.process.wait()
        out, err = (path.read_text() for path in self._logs)
        done = Done(code, out, err, seconds, self._most, names)
        if hung:
            pytest.fail(f"still running after {PATIENCE_S} s\n{done}")
        return done

    def _left(self) -> list[psutil.Process]:
        self.family()
        return [process for process in self._seen if is_alive(process)]


def title_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "(gone)"


class Commands:
    """Starts commands with a clean environment: no credentials, no cluster to join."""

    def __init__(self, logs: Path, ray: Path) -> None:
        self._logs = logs
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        self.env = kept | {"RAY_TMPDIR": str(ray)}
        self.started: list[Command] = []

    def start(self, *args: object, env: dict[str, str] | None = None) -> Command:
        """Starts any command line."""
        command = Command(args, self.env | (env or {}), self._logs)
        self.started.append(command)
        return command

    def job(self, name: str, *args: object, env: dict[str, str] | None = None) -> Command:
        """Starts `python -m jobs.NAME ARGS`."""
        return self.start(sys.executable, "-m", f"jobs.{name}", *args, env=env)

    def run(self, name: str, *args: object, env: dict[str, str] | None = None) -> Done:
        """Runs `python -m jobs.NAME ARGS` to its end."""
        return self.job(name, *args, env=env).ended()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    # Ray's socket paths must be short: its folder is no pytest folder.
    with tempfile.TemporaryDirectory(prefix="pf-", ignore_cleanup_errors=True) as ray:
        found = Commands(tmp_path_factory.mktemp("logs"), Path(ray))
        yield found
        for command in found.started:
            kill_marked(command.mark)
            command.process.wait()
