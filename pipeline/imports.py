"""Imports of an actor, some of which take a second."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Python does not look for garbage meanwhile.

    There is none in modules, and a fifth of the time that torch's import takes goes by with it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
