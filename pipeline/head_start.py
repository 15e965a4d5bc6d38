"""What a local run prepares before all else: Ray's environment, and the imports of its workers."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from pipeline.one_machine import is_known_ray
from pipeline.worker_template import worker_template

_GIVEN: ContextVar[bool] = ContextVar("given", default=False)


def in_cluster() -> bool:
    """Whether there is a cluster to join: `ray job submit` says so in the environment."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def head_start() -> Iterator[None]:
    """Begins what a local run waits for longest: two seconds of imports, in its workers' template.

    Best given before this process's own imports; after Ray's there is no template. Nothing happens
    where there is a cluster to join, nor in a block of this within another one. What it sets in the
    environment stays there. A command that runs nothing after all has begun those imports in vain.
    """
    if in_cluster() or _GIVEN.get():
        yield
        return
    first = "ray" not in sys.modules
    _set_environment(first=first)
    with ExitStack() as stack:
        stack.callback(_GIVEN.reset, _GIVEN.set(True))
        if first and is_known_ray():
            stack.enter_context(worker_template())
        yield


def _set_environment(*, first: bool) -> None:
    """What a local cluster takes from the environment, and must have before Ray is imported."""
    # Without a token, whoever reaches Ray may run code here; even with one, its metrics are open.
    if first:  # Whoever imported it before us has settled this.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Despite its name, all that makes Ray listen on the loopback interface alone: it would
        # take 127.0.0.1 for another name of the public address, and listen on every one.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    # glibc otherwise keeps what tensors of ever other sizes leave behind, in every thread's
    # arena; all but the first of which give theirs back again and again, for a tenth of the
    # encoder's time.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(32 * 2**20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(64 * 2**20))
