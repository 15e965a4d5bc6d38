"""Runs a command and counts what it and all processes below it took.

CPU seconds: what a process waits for is in its own account once it has ended, to the microsecond,
and whatever loses its parent becomes this process's child (PR_SET_CHILD_SUBREAPER), so the accounts
of the children reaped here hold everything but the children of those that ignore SIGCHLD (Ray's
raylet does): these vanish from all accounts, and are counted as they were last seen, at most
`SCAN_S` before. Memory: proportional set size, in which a shared page counts once, looked at every
`MEMORY_S`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Both take time of whoever has many processes: memory is counted page by page.
SCAN_S = 0.5
MEMORY_S = 5.0
# What still runs this long after the command has ended is killed.
PATIENCE_S = 20.0
_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    began: float
    """Seconds since the epoch."""
    wall_s: float
    cpu_s: float
    peak_bytes: int
    core_busy: list[float]
    """Each core's busy share, by whatever process, between 50% and 90% of the command's time."""


@dataclass(frozen=True)
class _Process:
    parent: int
    cpu_s: float
    """Its own, and what it has waited for."""
    ignores_children: bool


@dataclass
class _Tree:
    """The processes below this one, those apart that were there before."""

    strangers: set[int] = field(default_factory=set)
    alive: dict[int, _Process] = field(default_factory=dict)
    vanished_s: float = 0.0
    reaped_s: float = 0.0
    codes: dict[int, int] = field(default_factory=dict)

    def scan(self) -> None:
        """Looks again who is there, and reaps children that have ended."""
        found = dict(_descendants(os.getpid(), self.strangers))
        for pid, process in found.items():
            if process.parent == os.getpid():
                self._reap(pid)
        for pid in self.alive.keys() - found.keys() - self.codes.keys():
            parent = self.alive.get(self.alive[pid].parent)
            if parent is not None and parent.ignores_children:
                self.vanished_s += self.alive[pid].cpu_s
        self.alive = {pid: found[pid] for pid in found.keys() - self.codes.keys()}

    def _reap(self, pid: int) -> None:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            self.codes[pid] = os.waitstatus_to_exitcode(status)
            self.reaped_s += usage.ru_utime + usage.ru_stime

    def bytes_now(self) -> int:
        """Memory of all of them."""
        return sum(_proportional_bytes(pid) for pid in self.alive)


def run(command: Sequence[object], *, env: Mapping[str, str] | None = None) -> Usage:
    """Runs a command to its end, standard output to standard error.

    Raises:
        subprocess.CalledProcessError: Its exit code is not 0.
    """
    arguments = [str(argument) for argument in command]
    tree = _Tree()
    tree.strangers = {pid for pid, _ in _descendants(os.getpid(), set())}
    with _subreaper():
        began, start = time.time(), time.perf_counter()
        # A Popen would mind that others reap its child.
        to_stderr = (os.POSIX_SPAWN_DUP2, 2, 1)
        environment = os.environ if env is None else env
        pid = os.posix_spawnp(arguments[0], arguments, environment, file_actions=[to_stderr])
        cores = [(0.0, *_core_ticks())]
        peak = 0
        measured = -MEMORY_S
        for now in _scans(tree, pid, start):
            cores.append((now, *_core_ticks()))
            if now - measured >= MEMORY_S:
                peak, measured = max(peak, tree.bytes_now()), now
        wall_s = time.perf_counter() - start
        _outlast(tree)
    if tree.codes[pid]:
        raise subprocess.CalledProcessError(tree.codes[pid], arguments)
    return Usage(began, wall_s, tree.reaped_s + tree.vanished_s, peak, _busy(cores, wall_s))


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    try:
        yield
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _scans(tree: _Tree, pid: int, start: float) -> Iterator[float]:
    """Scans until the command ends; yields the seconds since its start."""
    ended = select.poll()
    descriptor = os.pidfd_open(pid)
    ended.register(descriptor, select.POLLIN)
    try:
        while not ended.poll(SCAN_S * 1e3):
            tree.scan()
            yield time.perf_counter() - start
    finally:
        os.close(descriptor)


def _outlast(tree: _Tree) -> None:
    """Waits for what the command has left behind."""
    deadline = time.monotonic() + PATIENCE_S
    tree.scan()
    while tree.alive:
        if time.monotonic() > deadline:
            for pid in tree.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(SCAN_S / 4)
        tree.scan()


def _descendants(root: int, strangers: set[int]) -> Iterator[tuple[int, _Process]]:
    """Processes below `root` by number, without strangers and what is below them."""
    stats = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may have any characters.
                text = (folder / "stat").read_text(errors="replace")
                stats[int(folder.name)] = text[text.rindex(")") :].split()
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[2]), []).append(pid)
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), []):
            if pid not in strangers:
                todo.append(pid)
                ticks = sum(map(int, stats[pid][12:16]))
                yield pid, _Process(int(stats[pid][2]), ticks * _TICK_S, _ignores_children(pid))


def _ignores_children(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("SigIgn:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGCHLD - 1) & 1)
    return False


def _proportional_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _core_ticks() -> tuple[list[int], list[int]]:
    """Of each core, since the machine's start: busy, and in all."""
    busy, whole = [], []
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            # user, nice, system, idle, waiting for disks, interrupts of both kinds, stolen
            ticks = [int(number) for number in numbers[:8]]
            whole.append(sum(ticks))
            busy.append(sum(ticks) - ticks[3] - ticks[4])
    return busy, whole


def _busy(cores: list[tuple[float, list[int], list[int]]], wall_s: float) -> list[float]:
    middle = [sample for sample in cores if 0.5 * wall_s <= sample[0] <= 0.9 * wall_s]
    if len(middle) < 2:
        return []
    (_, busy, whole), (_, busy_later, whole_later) = middle[0], middle[-1]
    return [
        round((late - early) / max(until - since, 1), 3)
        for early, late, since, until in zip(busy, busy_later, whole, whole_later, strict=True)
    ]
