"""What stops a pipeline from outside its stages: too many errors, machines that come or go."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType

import ray

from pipeline.budgets import Claims
from pipeline.config import ComputeDevice, EmbedConfig
from pipeline.errors import ErrorRateError, PatchflowError, ResizedError
from pipeline.progress import Counts
from pipeline.workers import Workers, plan_workers

# Fewer items than this say nothing about a rate while the run goes on.
_RATE_ITEMS = 100
_TOP_CODES = 3

_LOOK_S = 5.0
# A machine that is lost takes its actors' work along, and everything behind it waits: long enough
# for the cluster to give back another one at once, and no longer.
_LOST_S = 30.0
# One that came makes the run faster, but changing over costs a start and the shards under way.
_CAME_S = 300.0


class _Stop(KeyboardInterrupt):
    """The brake's own interrupt, told apart from a person's."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


class Brake:
    """Interrupts the main thread, as Ctrl-C would, once one of `checks` raises.

    The main thread waits for the next shard, which may be hours away; `watch` is called with the
    newest counts from another. What the check raised leaves the `with` block in the interrupt's
    place. The signal is not Ctrl-C's: Ray's jobs block that, and shells ignore it in the
    background.
    """

    def __init__(self, *checks: Callable[[Counts], None]) -> None:
        self._checks = checks
        self._error: PatchflowError | None = None

    def watch(self, counts: Counts) -> None:
        """Lets every check look at the newest counts."""
        if self._error is not None:
            return
        try:
            for check in self._checks:
                check(counts)
        except PatchflowError as error:
            self._error = error
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def __enter__(self) -> Brake:
        self._before = signal.signal(signal.SIGUSR1, _stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGUSR1, self._before)
        # What else fails when all is taken down is a consequence; a person's interrupt is not.
        if self._error is not None and isinstance(error, (_Stop, Exception)):
            raise self._error from (None if isinstance(error, _Stop) else error)


class ErrorRate:
    """Bounds the share of the run's items that fail; `done` are those of earlier passes."""

    def __init__(self, highest: float, done: Counts) -> None:
        self._highest, self._done = highest, done

    def watch(self, counts: Counts) -> None:
        """Raises ErrorRateError if the rate is passed by enough items to tell."""
        items = self._done.items + counts.items
        if items >= _RATE_ITEMS:
            self.check(items, self._done.errors + counts.errors)

    def check(self, items: int, errors: Counter[str]) -> None:
        """Raises ErrorRateError if the rate is passed."""
        failed = errors.total()
        if failed > items * self._highest:
            top = ", ".join(f"{code} {count:,}" for code, count in errors.most_common(_TOP_CODES))
            raise ErrorRateError(
                f"{failed:,} of {items:,} items failed ({top}), more than --max-error-rate "
                f"{self._highest}; the same command with a higher one resumes"
            )


class Machines:
    """Sees machines come and go, so that the run can be laid out anew.

    The engine keeps a lost actor's calls for that actor alone: without a machine to restart it
    on they would wait for ever, and all later shards behind them.
    """

    def __init__(
        self, config: EmbedConfig, device: ComputeDevice, claims: Claims, workers: Workers
    ) -> None:
        self._possible = partial(plan_workers, config, device, claims)
        self._workers = workers
        self._seen = workers
        self._since = self._looked = time.monotonic()

    def watch(self, counts: Counts) -> None:
        """Raises ResizedError once the cluster has been another one for a while."""
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return
        self._looked = now
        try:
            possible = self._possible()
        except ray.exceptions.RayError:
            return  # The cluster does not answer now; the next look tells.
        if possible != self._seen:
            self._seen, self._since = possible, now
        if possible == self._workers:
            return
        lost = possible.share_of_machines < self._workers.share_of_machines
        if now >= self._since + (_LOST_S if lost else _CAME_S):
            raise ResizedError(
                f"machines were {'lost' if lost else 'added'}: going on with {possible} instead "
                f"of {self._workers}"
            )
