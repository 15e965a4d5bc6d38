"""How an encoder's process ends itself: another one, which Ray starts, takes its calls over."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.packs import first_line

if TYPE_CHECKING:
    from pipeline.attempts import OwnAttempts
    from pipeline.rungs import Rung


def end_if_sick(error: RuntimeError, attempts: OwnAttempts) -> None:
    """Ends the process if it can do nothing more on its device."""
    from encoder import is_device_error  # noqa: PLC0415 (it brings torch)

    if is_device_error(error):
        _end(first_line(error), attempts)


def end_if_refused(error: RuntimeError, attempts: OwnAttempts, rung: Rung) -> None:
    """Ends the process of a GPU if its kernels failed, and there are plainer ones for the next."""
    reason = first_line(error)
    if attempts.give_up(rung, reason) is not None:
        _end(reason, attempts)


def end_hung(what: str, attempts: OwnAttempts, rung: Rung) -> None:
    """Ends the process of a GPU that hangs; the next one uses plainer kernels, if there are."""
    try:
        attempts.give_up(rung, what)
    finally:
        _end(what, attempts)


@contextmanager
def warnings_remarked(attempts: OwnAttempts) -> Iterator[None]:
    """Passes on what PyTorch warns of, such as a GPU that it is not built for."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for one in caught:
                if one.category is UserWarning:
                    attempts.remark(str(one.message).partition("\n")[0])


def _end(reason: str, attempts: OwnAttempts) -> None:
    """Without any of what Python does at the end of a process, which may wait for the device."""
    try:
        attempts.report(reason)
    finally:
        os._exit(1)
