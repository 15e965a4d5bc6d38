"""The program of the template: it holds the imports, sees no file, and forks decoder processes.

python -m processors.sandbox.template SOCKET PARENT_PID
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import select
import signal
import socket
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from processors.media import open_media, warm_up
from processors.sandbox.child import Open, run_child
from processors.sandbox.lockdown import hide_memory, load_filter, offer_to_be_killed
from processors.sandbox.protocol import MAX_MESSAGE_BYTES, Start


def main(open_file: Open = open_media) -> None:
    """Serves the process that started this one until it ends or hangs up.

    Args:
        open_file: What a child decodes a file with.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = os.pidfd_open(int(sys.argv[2]))
    if os.getppid() != int(sys.argv[2]):
        return
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # An actor's process may have told its children to ignore or to block some.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _keep_niceness()
    offer_to_be_killed()
    hide_memory()  # from the children, who would infect those after them
    load_filter()
    # To show where one comes from, Python would read the source of the library that warns.
    warnings.simplefilter("ignore")
    warm_up()
    gc.collect()
    gc.freeze()  # Pages that the collector does not touch stay shared with the children.
    control.send(b"{}")  # ready
    _Template(control, parent, open_file).run()


def _keep_niceness() -> None:
    """Has this session no more of a core than its parent.

    The scheduler takes a session for one process of niceness 0, whatever its processes have
    (sched(7), "The autogroup feature"): it would come before whatever waits for the decoder.
    """
    with suppress(OSError):  # Not every kernel has it.
        Path("/proc/self/autogroup").write_text(str(os.nice(0)))


class _Template:
    def __init__(self, control: socket.socket, parent: int, open_file: Open) -> None:
        self._control = control
        self._parent = parent
        self._open = open_file
        self._children: set[int] = set()

    def run(self) -> None:
        events = select.poll()
        events.register(self._control, select.POLLIN)
        # A fork of the parent may hold its socket, so that its end is not always heard there.
        events.register(self._parent, select.POLLIN)
        while not any(fd == self._parent for fd, _ in events.poll()):
            message, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 3)
            if not message:
                break
            request = pickle.loads(message)
            if isinstance(request, Start):
                self._fork(request, fds)
            else:
                self._reap(request)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(self, start: Start, fds: list[int]) -> None:
        template = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._control.send(json.dumps({"error": str(error)}).encode())
            return
        if pid == 0:
            self._become_child(start, fds, template)
        self._children.add(pid)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(self._control, [json.dumps({"pid": pid}).encode()], [pidfd])
        for fd in (*fds, pidfd):
            os.close(fd)

    def _become_child(self, start: Start, fds: list[int], template: int) -> NoReturn:
        try:
            run_child(self._open, start, fds, template=template)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        self._children.discard(pid)
        self._control.send(json.dumps({"status": status}).encode())


if __name__ == "__main__":
    main()
