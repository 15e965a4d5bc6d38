"""What an autoscaler of the cluster sees of the encoders that wait for GPUs."""

from __future__ import annotations

import time
from types import TracebackType

import ray

from pipeline.head_start import in_cluster
from pipeline.progress import Counts
from pipeline.workers import Workers

_LOOK_S = 5.0


class GpuDemand:
    """Keeps one task pending for every encoder that waits, each of which claims what it would.

    They are no actors of the pool: one of those would take the GPU of an encoder whose process has
    ended, before Ray starts it again, and that encoder's calls would wait until the end of the run.
    A task that is given a GPU does nothing and is followed by another. When GPUs have come, the run
    is laid out anew (`pipeline.brake.Machines`) and has encoders for them.
    """

    def __init__(self, workers: Workers) -> None:
        self._wanted = workers.waiting if in_cluster() else 0
        self._claim = ray.remote(
            num_cpus=0,
            num_gpus=workers.encode_gpus,
            memory=workers.encode_bytes,
            max_retries=0,
        )(_do_nothing)
        self._pending: list[ray.ObjectRef[None]] = []
        self._looked = -_LOOK_S

    def watch(self, counts: Counts) -> None:
        """Submits the tasks that are not pending."""
        now = time.monotonic()
        if not self._wanted or now < self._looked + _LOOK_S:
            return
        self._looked = now
        if self._pending:
            _, self._pending = ray.wait(self._pending, num_returns=len(self._pending), timeout=0)
        missing = self._wanted - len(self._pending)
        self._pending += [self._claim.remote() for _ in range(missing)]

    def __enter__(self) -> GpuDemand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wanted = 0
        for task in self._pending:
            ray.cancel(task)


def _do_nothing() -> None:
    pass
