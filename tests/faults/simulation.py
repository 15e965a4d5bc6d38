"""Processes of the real code, one running at a time, each of which can die at any operation.

A simulated process is a thread that stops before every primitive operation on its output: on a
disk a system call, where a file's content goes out in two halves; on S3 a request. Whoever holds
the simulation says which process goes on and what becomes of its operation, so that a history is
a function of these decisions alone. To be killed between two operations, in the middle of a
content or after the last operation is to be killed before the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from pipeline.errors import StorageError
from pipeline.location import join

Outcome = Literal["done", "killed", "refused", "lost", "late", "twice"]
"""What becomes of an operation.

`killed`: it does not happen, and its process never does anything again. `refused`: it fails.
`lost`: it happens, and fails. `late`: it fails, and happens whenever the network delivers it.
`twice`: its first answer is lost and the client, unseen by the process, asks again.
"""

WRITES = {"mkdir", "create file", "fill", "link", "replace", "rename", "unlink"}
WRITES |= {"write", "create", "delete", "upload"}
# A request whose data is in memory: it can outlive its process on the way.
REQUESTS = {"write", "create", "delete"}

# Far beyond what any operation takes.
_PATIENCE_S = 60.0

T = TypeVar("T")
# Its `process` is the one that a thread simulates.
current = threading.local()


class Killed(BaseException):
    """Unwinds the thread of a process that was killed."""


class Watch(Protocol):
    """What must hold after every step."""

    def check(self, place: str) -> None:
        """Looks at what may have changed at `place`."""


class Process:
    """A thread that runs `work`, from one operation to the next as it is told."""

    def __init__(self, name: str, root: str, work: Callable[[], object]) -> None:
        self.name, self.root = name, root
        self.operation, self.place = "start", ""
        self.ended = self.killed = self.disturbed = False
        self.error: BaseException | None = None
        self.writes = 0
        self.underway: list[tuple[str, Callable[[], object]]] = []
        """Requests that have yet to reach the server."""
        self._outcome: Outcome = "done"
        self._work = work
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()
        self._await_stop()

    def go_on(self, outcome: Outcome) -> None:
        """Lets the pending operation come to `outcome`, and runs on to the next one."""
        self._outcome = outcome
        self._go.release()
        self._await_stop()
        if self.ended:
            self._thread.join()

    def operate(self, operation: str, place: str, apply: Callable[[], T], error: Exception) -> T:
        """One operation, in the process's own thread."""
        if self.killed:
            raise Killed
        self.operation, self.place = operation, place
        self._stopped.release()
        self._go.acquire()
        outcome = self._outcome
        self.killed = outcome == "killed"
        self.disturbed |= outcome != "done"
        if self.killed:
            raise Killed
        if outcome == "late":
            self.underway.append((place, apply))
        if outcome in ("refused", "late"):
            raise error
        self.writes += operation in WRITES
        result = apply()
        if outcome == "twice":
            result = apply()
        if outcome == "lost":
            # What a file was opened for never comes to be.
            getattr(result, "close", lambda: None)()
            raise error
        return result

    def _run(self) -> None:
        current.process = self
        try:
            self._work()
        except BaseException as error:  # A process ends with whatever it ends with.
            self.error = error
        self.ended = True
        self._stopped.release()

    def _await_stop(self) -> None:
        assert self._stopped.acquire(timeout=_PATIENCE_S), f"{self.name} hangs in {self.operation}"


def operate(operation: str, place: str, apply: Callable[[], T], error: Exception) -> T:
    """Does `apply`: as a step of the process that this thread simulates, if it does and minds."""
    process: Process | None = getattr(current, "process", None)
    if process is None or not place.startswith(process.root):
        return apply()
    return process.operate(operation, place, apply, error)


@dataclass
class Tally:
    """What the simulations of a whole test run came to."""

    histories: int = 0
    kills: int = 0
    disturbances: int = 0

    def add(self, processes: list[Process]) -> None:
        """Counts one history that ended well."""
        self.histories += 1
        self.kills += sum(process.killed for process in processes)
        self.disturbances += sum(process.disturbed and not process.killed for process in processes)


TALLY = Tally()


class Simulation:
    """Processes that share the output `root`, and what they have done so far."""

    def __init__(self, root: str, watch: Watch) -> None:
        self.root = root
        self.trace: list[str] = []
        self.processes: list[Process] = []
        self._watch = watch

    @property
    def running(self) -> list[Process]:
        """Those that have not ended, oldest first."""
        return [process for process in self.processes if not process.ended]

    def start(self, name: str, work: Callable[[], object]) -> Process:
        """A new process, stopped before its first operation."""
        process = Process(name, self.root, work)
        self.processes.append(process)
        self._check_end(process)
        return process

    def step(self, process: Process, outcome: Outcome = "done") -> None:
        """One operation of `process`; then everything must be as it must always be."""
        assert not process.ended
        place = process.place
        name = place.removeprefix(join(self.root, ""))
        self.trace.append(f"{process.name}: {process.operation} {name} {outcome}")
        process.go_on(outcome)
        self._watch.check(place)
        self._check_end(process)

    def run(self, process: Process, steps: int | None = None) -> None:
        """Lets a process go on undisturbed, to its end or for at most so many steps."""
        while not process.ended and steps != 0:
            self.step(process)
            steps = None if steps is None else steps - 1

    def deliver(self) -> None:
        """What is still on its way arrives, after everything that came meanwhile."""
        for process in self.processes:
            for place, arrive in process.underway:
                self.trace.append(f"{process.name}: {place} arrives")
                arrive()
                self._watch.check(place)
            process.underway.clear()

    def kill_all(self) -> None:
        """Ends every process."""
        for process in self.running:
            self.step(process, "killed")

    def _check_end(self, process: Process) -> None:
        error = process.error
        if error is None or process.killed:
            return
        # Only what was disturbed may fail, and it must say so as every failure of storage does.
        if not (process.disturbed and isinstance(error, StorageError)):
            raise AssertionError(f"{process.name} failed: {error!r}") from error
