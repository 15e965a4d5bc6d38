"""Steps for `test_process.py`, which runs them in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options

FINDING = Finding(step="first", result="ok", figure="it begins")


def well(options: Options) -> Iterator[Finding]:
    print("a library's chatter")
    yield Finding(step="first", result="ok", figure=str(options.encoder))
    yield Finding(step="second", result="warning", figure=os.environ.get("SEEN", ""))


def raises(options: Options) -> Iterator[Finding]:
    yield FINDING
    raise RuntimeError("the device is gone")


def crashes(options: Options) -> Iterator[Finding]:
    yield FINDING
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(options: Options) -> Iterator[Finding]:
    yield FINDING
    time.sleep(600)


def exits_quietly(options: Options) -> Iterator[Finding]:
    yield FINDING
    os._exit(0)


class _Rubbish:
    def to_json(self) -> str:
        return '{"step": "x"}'


def rubbish(options: Options) -> Iterator[object]:
    yield FINDING
    yield _Rubbish()
