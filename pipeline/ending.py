"""How an encoder's process ends itself: another one, which Ray starts, takes its calls over."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.attempts import MOST_DEATHS
from pipeline.packs import first_line

if TYPE_CHECKING:
    from pipeline.attempts import OwnAttempts
    from pipeline.packs import PackedEncoder
    from pipeline.rungs import Rung


def end_if_sick(error: RuntimeError, attempts: OwnAttempts) -> None:
    """Ends the process if it can do nothing more on its device."""
    from encoder import is_device_error  # noqa: PLC0415 (it brings torch)

    if is_device_error(error):
        _end(first_line(error), attempts)


def end_failed_pack(error: RuntimeError, attempts: OwnAttempts, rung: Rung) -> None:
    """Ends the process of a GPU on which a pack failed.

    The next one uses plainer kernels, if there are any. If not, the ends that are counted tell
    whether the item or the device is at fault.
    """
    reason = first_line(error)
    attempts.give_up(rung, reason)
    _end(reason, attempts)


def end_failed_start(
    error: RuntimeError, attempts: OwnAttempts, encoder: PackedEncoder | None
) -> None:
    """Ends the process of a GPU on which an encoder did not start.

    After so many ends in a row kernels are at fault that leave the device unusable, and the next
    process uses plainer ones.

    Args:
        error: Why it did not.
        attempts: Of this process.
        encoder: None if it was not even loaded.
    """
    if encoder is not None and attempts.ends() >= MOST_DEATHS:
        attempts.give_up(encoder.rung, first_line(error))
    _end(first_line(error), attempts)


def end_hung(what: str, attempts: OwnAttempts, encoder: PackedEncoder | None) -> None:
    """Ends the process of a GPU that hangs; the next one uses plainer kernels, if there are."""
    try:
        if encoder is not None:
            for rung, reason in [*encoder.failures, (encoder.rung, what)]:
                attempts.give_up(rung, reason)
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
