"""The template of a local run's workers: a process that holds their imports, and forks them.

    python -m pipeline.worker_template LISTENER ADDRESS

Ray starts a Python for every worker, and each imports Ray Data and torch again: two seconds of a
core, when all cores are at work on the first items. The raylet is told to start
`pipeline.worker_start` instead, which asks for a fork here.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from types import SimpleNamespace
from typing import Any, NoReturn

from pipeline.imports import collector_at_rest
from pipeline.worker_start import ADDRESS, STARTED

# What Ray's core reads from a worker's environment when it is loaded, here for all of them: a
# cluster's first job, of which those started ahead of any are told nothing yet, and whose end is to
# be theirs.
_JOB, _FIRST_JOB, _NO_JOB = "RAY_JOB_ID", "01000000", "ffffffff"
_OWNER = "RAY_RAYLET_PID"
_MOST_BYTES = 2**20
_PATIENCE_S = 10.0
# What actors and tasks have imported when they are at work, by its last names.
_IMPORTS = (
    "encoder.load",
    "encoder.self_check",
    "pandas",
    "pipeline.build",
    "pipeline.local",
    "pipeline.notes",
    "pipeline.preprocess",
    "pipeline.shared_packs",
    "processors.factories",
    "pyarrow.json",
    "ray._common.pydantic_compat",
    "ray._private.arrow_serialization",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.planner.plan_udf_map_op",
    "ray.data.extensions",
    "torch",
)


@contextmanager
def worker_template() -> Iterator[None]:
    """Runs a template beside this process, for the Ray that it is to start.

    It inherits this process's environment, as workers do. Should it fail, Ray's workers import for
    themselves.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # Paths of sockets are short: not every TMPDIR has room for one.
            stack.enter_context(_template_process())
        yield


@contextmanager
def _template_process() -> Iterator[None]:
    # A template whose driver is gone removes it too.
    folders = tempfile.TemporaryDirectory(prefix="patchflow-", ignore_cleanup_errors=True)
    with folders as folder:
        address = str(Path(folder) / "workers")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)  # Nobody else may enter the folder.
            listener.listen()
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), address],
                cwd=Path(__file__).parents[1],
                env={
                    "OMP_NUM_THREADS": "1",  # As Ray tells every worker that has a CPU or less.
                    **os.environ,
                    _JOB: _FIRST_JOB,
                    _OWNER: str(os.getpid()),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                process_group=0,  # Ctrl-C is this process's to deal with.
            )
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            os.environ.pop(ADDRESS, None)
            process.kill()
            process.communicate()


class _Template:
    """Forks workers, and tells those that asked for them of their end.

    Args:
        listener: Where they ask.
        address: Its place, in a folder of its own, which goes with the driver.
    """

    def __init__(self, listener: socket.socket, address: Path) -> None:
        self._listener = listener
        self._address = address
        self._asked: dict[int, socket.socket] = {}
        """By the descriptor of each worker's process, who asked for it."""
        self._events = DefaultSelector()
        self._events.register(listener, EVENT_READ, self._accept)
        # The driver's end of this pipe closes with it.
        self._events.register(sys.stdin, EVENT_READ, self._end)

    def run(self) -> NoReturn:
        while True:
            for key, _ in self._events.select():
                key.data()

    def _end(self) -> NoReturn:
        with suppress(OSError):
            self._address.unlink()
            self._address.parent.rmdir()
        sys.exit()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_PATIENCE_S)
        streams: list[int] = []
        worker = None
        try:
            message, streams, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
            request = _request(message)
            worker = os.fork()
        except (OSError, ValueError):  # Whoever asked is gone, or does without.
            connection.close()
        if worker == 0:
            self._close(connection)
            _work(request, streams)
        for stream in streams:
            os.close(stream)
        if worker is None:
            return
        with suppress(OSError):
            connection.send(STARTED)
        process = os.pidfd_open(worker)
        self._asked[process] = connection
        self._events.register(process, EVENT_READ, partial(self._reap, process))

    def _reap(self, process: int) -> None:
        os.waitid(os.P_PIDFD, process, os.WEXITED)
        self._events.unregister(process)
        os.close(process)
        self._asked.pop(process).close()

    def _close(self, connection: socket.socket) -> None:
        """Lets go of all descriptors, in a worker."""
        self._events.close()
        for process in self._asked:
            os.close(process)
        for one in (*self._asked.values(), connection, self._listener):
            one.close()


def _request(message: bytes) -> dict[str, Any]:
    """What a worker is to be like.

    Raises:
        ValueError: It cannot be forked here.
    """
    request: dict[str, Any] = json.loads(message)
    if request["environment"].get(_JOB) not in (_FIRST_JOB, _NO_JOB):
        raise ValueError(f"{request['environment'].get(_JOB)}: not the first job")
    return request


def _work(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Does what the process that `pipeline.worker_start` is would do, in this one.

    What must not end it, as its end is all that the raylet would hear, does not.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.setpgid(0, 0)  # The raylet ends a worker with all of its group.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # As in all that the raylet starts.
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(request["oom_score_adj"])
    sys.argv = request["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def import_all() -> None:
    """Imports what workers will, without a draw of Ray's random numbers."""
    actor: Any = import_module("ray.actor")
    # Every class that is made an actor's draws one. Once drawn from, the generator would go on
    # alike in all forks, whose objects would then have the same names.
    drawn = actor.ActorClassID
    actor.ActorClassID = SimpleNamespace(from_random=lambda: drawn(os.urandom(drawn.size())))
    try:
        for name in _IMPORTS:
            import_module(name)
    finally:
        actor.ActorClassID = drawn


def forks_draw_alike() -> bool:
    """Whether processes forked here have the same of Ray's random numbers."""
    return _draw_in_fork() == _draw_in_fork()


def _draw_in_fork() -> bytes:
    import ray  # noqa: PLC0415

    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if not pid:
            try:
                theirs.send(ray.NodeID.from_random().binary())
            finally:
                os._exit(0)
        theirs.close()  # Or its end would not be seen, if it comes before a draw.
        os.waitpid(pid, 0)
        return ours.recv(_MOST_BYTES)


def main() -> None:
    """Imports, then forks a worker for whoever asks, until standard input ends."""
    with collector_at_rest():
        import_all()
    if forks_draw_alike():
        sys.exit("forks draw the same random numbers")
    gc.freeze()  # Pages that the collector does not touch stay shared with the workers.
    _Template(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])).run()


if __name__ == "__main__":
    main()
