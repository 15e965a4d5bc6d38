"""The parent's handles on its template and on the decoder process that this forks."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import processors
from processors.sandbox.memory import SharedMemory
from processors.sandbox.protocol import MAX_MESSAGE_BYTES, Start

# Imports take well under a second, or half a minute where a cluster starts hundreds at once.
_START_LIMIT_S: Final = 120.0
# A process that hung up dies within this, or is made to.
_DEATH_LIMIT_S: Final = 1.0

# All that a decoder has use for. Whatever else is there, credentials among it, stays out.
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME")
_SET_VARIABLES: Final = {
    # Most pictures find their memory where the one before left it, and the others take it in huge
    # pages: having pages made, 4 KiB at a time, is half the cost of decoding 12 megapixels.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=67108864",
    "OMP_NUM_THREADS": "1",  # Threads do not survive a fork.
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONSAFEPATH": "1",
}


class TemplateError(Exception):
    """The template ended, hangs or could not fork. Says why."""


class Child:
    """A decoder process.

    Args:
        pid: Its number, good until it is reaped.
        pidfd: A descriptor of it, owned from now on.
        connection: Its socket, likewise.

    Attributes:
        enforced: What it is denied, and whether this machine denies it.
        was_killed: Whether by this end.
    """

    def __init__(self, pid: int, pidfd: int, connection: socket.socket) -> None:
        self.pid = pid
        self.enforced: dict[str, bool] = {}
        self.was_killed = False
        self._pidfd = pidfd
        self._connection = connection
        self._message = bytearray(MAX_MESSAGE_BYTES + 1)

    def send(self, message: bytes) -> None:
        """Never waits and never fails: of a process that is gone, ``receive`` tells."""
        try:
            self._connection.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self.kill()  # A sound one has read what it was sent long before its socket is full.
        except OSError:
            pass

    def receive(self, timeout_s: float) -> bytearray:
        """The next message; empty when there will be none.

        Raises:
            TimeoutError: If none came in time; none does in no time.
        """
        if timeout_s <= 0:
            raise TimeoutError
        self._connection.settimeout(timeout_s)
        try:
            size = self._connection.recv_into(self._message)
        except ConnectionError:
            size = 0
        return self._message[:size]

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self.was_killed = True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def await_death(self) -> None:
        """Returns once it is dead, for which it is killed unless it dies by itself at once.

        Raises:
            TemplateError: If even that does not end it.
        """
        if not self._is_dead_within(_DEATH_LIMIT_S):
            self.kill()
            if not self._is_dead_within(_START_LIMIT_S):
                raise TemplateError("a decoder process does not die")

    def close(self) -> None:
        """Lets go of the descriptors."""
        self._connection.close()
        os.close(self._pidfd)

    def _is_dead_within(self, timeout_s: float) -> bool:
        death = select.poll()
        death.register(self._pidfd, select.POLLIN)
        return bool(death.poll(1000 * timeout_s))


class Template:
    """The process that holds the imports and forks.

    It inherits neither descriptors nor threads nor environment from this one, only where to find
    its packages.

    Args:
        module: The program.

    Raises:
        TemplateError: If it does not come up.
        OSError: If no process, descriptor or memory is left for it.
    """

    def __init__(self, module: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_START_LIMIT_S)
        self._log = os.memfd_create("patchflow-template-log", os.MFD_CLOEXEC)
        try:
            with theirs:
                self._process = _started(module, theirs, log=self._log)
        except OSError:
            self._control.close()
            os.close(self._log)
            raise
        try:
            self._receive()  # that it is ready
        except TemplateError:
            self.close()
            raise

    def start_child(self, start: Start, memory: SharedMemory) -> Child:
        """Forks a decoder process and waits until it has locked itself down.

        Raises:
            TemplateError: If none comes up.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                fds = [theirs.fileno(), *memory.fds]
                reply, (pidfd,) = self._ask(pickle.dumps(start), fds)
        except TemplateError:
            ours.close()
            raise
        child = Child(reply["pid"], pidfd, ours)
        try:
            hello = child.receive(_START_LIMIT_S)
        except TimeoutError:
            hello = bytearray()
        if not hello:
            child.kill()
            self.reap(child)
            raise TemplateError(f"a decoder process ended at once: {self._last_words()}")
        child.enforced = json.loads(hello)
        return child

    def reap(self, child: Child) -> int:
        """Waits for the end of a decoder process and lets go of it.

        Returns:
            Its status, as ``os.waitpid`` has it.

        Raises:
            TemplateError: If nobody can say.
        """
        try:
            child.await_death()
            reply, _ = self._ask(pickle.dumps(child.pid), [])
        finally:
            child.close()
        return int(reply["status"])

    def close(self) -> None:
        """Ends it, and its children with it."""
        self._control.close()
        try:
            self._process.wait(_DEATH_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._log)

    def _ask(self, request: bytes, fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        try:
            socket.send_fds(self._control, [request], fds)
        except OSError as error:
            raise TemplateError(f"it ended: {self._last_words()}") from error
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            message, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 1)
        except TimeoutError as error:
            raise TemplateError(f"it gave no answer within {_START_LIMIT_S:g} s") from error
        except ConnectionError:
            message = b""
        if not message:
            raise TemplateError(f"it ended: {self._last_words()}")
        reply = json.loads(message)
        if "error" in reply:
            raise TemplateError(f"it cannot fork: {reply['error']}")
        return reply, fds

    def _last_words(self) -> str:
        lines = os.pread(self._log, 2**20, 0).decode(errors="replace").splitlines()
        return lines[-1] if lines else "no message"


def _started(module: str, control: socket.socket, *, log: int) -> subprocess.Popen[bytes]:
    # -P: no module of the working directory's, which may be strangers'.
    command = [sys.executable, "-P", "-m", module, str(control.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        pass_fds=[control.fileno()],
        start_new_session=True,  # Ctrl-C is this process's to deal with.
    )


def clean_environment() -> dict[str, str]:
    """The environment of a process that sees strangers' files: where to find packages, no more."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith("LC_")
    }
    root = str(Path(processors.__file__).parents[1])
    folders = [root, *(str(Path(folder).absolute()) for folder in sys.path if folder)]
    return kept | _SET_VARIABLES | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(folders))}
