"""What the raylet of a local run starts for a worker: has the template fork one, and waits for it.

Ray's own script for that imports all of Ray to make an environment, half a second of a core, and
then starts the worker's Python; here there is no environment to make, and the fork is there in some
milliseconds. Where there is no template, the worker is started as Ray does it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

# An environment variable: where the template listens.
ADDRESS = "PATCHFLOW_WORKER_TEMPLATE"
STARTED = b"started"
_OF_ENVIRONMENTS = ("--serialized-runtime-env-context=", "--language=")


def main() -> None:
    """Becomes a worker, or waits for the end of one that the template has forked."""
    worker = [option for option in sys.argv[1:] if not option.startswith(_OF_ENVIRONMENTS)]
    with suppress(KeyError, OSError):
        # Options for Python come first, where it has any: a fork has the template's.
        if not worker[0].startswith("-") and _forked(os.environ[ADDRESS], worker):
            return
    os.execv(sys.executable, [sys.executable, *worker])


def _forked(address: str, worker: list[str]) -> bool:
    request = {
        "command": worker,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        # As the raylet has set it for this process.
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as template:
        template.connect(address)
        socket.send_fds(template, [json.dumps(request).encode()], [0, 1, 2])
        if template.recv(len(STARTED)) != STARTED:
            return False
        with suppress(OSError):
            template.recv(1)  # Nothing, once the worker has ended.
        return True


if __name__ == "__main__":
    main()
