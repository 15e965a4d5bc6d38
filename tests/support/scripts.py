"""Scripts that run in a Python of their own, in no cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A script to its end."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def environment() -> dict[str, str]:
    """This process's, without a cluster to join."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def running(pid: int) -> bool:
    """Whether there is such a process, and not only because nobody has asked how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
