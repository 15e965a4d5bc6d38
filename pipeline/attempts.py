"""What the encoders' processes ended at, remembered where the end of none of them reaches.

Ray starts an actor whose process has ended again, and gives it its calls again, for ever. One
small actor beside the driver remembers what every process was at, so that what keeps ending
processes is found, and is the right one of two:

- an item. After `MOST_DEATHS` ends a block is done item by item, each announced and alone; the
  item that ends as many processes when alone is the one (`Encode`).
- a device. After `MOST_ENDS` ends in a row, nothing embedded in between, the run fails.

Every end counts once and alike, be it a device error that the process ended itself for, a crash
or a signal: it is seen when the actor's next process starts. An end is held against all that was
under way in the process; a block that was there by chance is done more slowly, no worse.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from pipeline.notes import Ended
    from pipeline.progress import Counts

# A task that was under way at so many ends is suspected, or, if it was alone, found guilty.
MOST_DEATHS = 2
# More than an item without company, which ends `2 * MOST_DEATHS`: those that are left are for the
# device itself to fail with, before that item is found guilty. Several guilty items of one block
# without any other look like a sick device: the run rather fails than blames the innocent.
MOST_ENDS = 6


@dataclass
class _Process:
    """What one process is at."""

    device: str
    tasks: set[str] = field(default_factory=set)
    reason: str = ""


@dataclass
class _Device:
    """Processes that ended on a device since something was embedded there."""

    ends: int = 0
    reason: str = ""


class Attempts:
    """The actor: tasks begun and not done, by process; ends, by task and by device."""

    def __init__(self) -> None:
        self._processes: dict[str, _Process] = {}
        self._deaths: Counter[str] = Counter()
        self._devices: defaultdict[str, _Device] = defaultdict(_Device)

    def start(self, actor: str, device: str) -> str | None:
        """Notes a new process of `actor`: if it had one before, that one has ended.

        Returns:
            Why no process should work on `device` any more; None if one may.
        """
        last = self._processes.get(actor)
        if last is not None:
            self._deaths.update(last.tasks)
            self._devices[last.device].ends += 1
            self._devices[last.device].reason = last.reason or "it crashed or was killed"
        self._processes[actor] = _Process(device)
        found = self._devices[device]
        if found.ends < MOST_ENDS:
            return None
        return f"{found.ends} times in a row on {device}: {found.reason}"

    def begin(self, actor: str, task: str) -> int:
        """Notes that `actor` works on `task`; returns the ends that came amid it so far."""
        self._processes[actor].tasks.add(task)
        return self._deaths[task]

    def done(self, actor: str, task: str, *, embedded: bool) -> None:
        """Notes that `task` is done, and whether anything was embedded: its device is well."""
        process = self._processes[actor]
        process.tasks.discard(task)
        if embedded:
            self._devices[process.device].ends = 0

    def report(self, actor: str, reason: str) -> None:
        """Notes why the process of `actor` is about to end itself."""
        process = self._processes[actor]
        process.reason = process.reason or reason  # What other calls fail with follows from it.

    def deaths(self, tasks: Sequence[str]) -> list[int]:
        """The ends that came amid each task."""
        return [self._deaths[task] for task in tasks]

    def ends(self, actor: str) -> int:
        """The ends on the device of `actor` since something was embedded there."""
        return self._devices[self._processes[actor].device].ends


class OwnAttempts:
    """An encoder's own side, in an actor of Ray: it waits until what it says is noted."""

    def __init__(self, attempts: ActorHandle[Any]) -> None:
        import ray  # noqa: PLC0415 (the command line's other jobs do without)

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU")
        self._attempts = attempts
        self._actor = context.get_actor_id()
        node = f"{socket.gethostname()} ({context.get_node_id()[:8]})"
        self._lock = threading.Lock()
        self._ended: list[Ended] = []
        self._under_way = 0
        self.device = f"{node} gpu {','.join(gpus)}" if gpus else f"{node} cpu"

    def start(self) -> None:
        """Notes that this process starts.

        Raises:
            DeviceError: Too many before it have ended on this device.
        """
        failed = self._ask("start", self._actor, self.device)
        if failed is not None:
            raise DeviceError(
                f"the encoder's process ended {failed}; shards stay open, run the same command "
                "again"
            )

    def begin_block(self, name: str, shard: str) -> int:
        """Notes that this process works on a block, which the calling task of Ray makes.

        Returns:
            The processes that ended amid it so far.
        """
        import ray  # noqa: PLC0415

        with self._lock:
            ended, self._ended = self._ended, []
            self._under_way += 1
        task = ray.get_runtime_context().get_task_id()
        deaths: int = self._ask("begin_block", self._actor, name, task, shard, ended)
        return deaths

    def end_block(self, name: str, counts: Counts, *, embedded: bool) -> None:
        """Notes that a block is done: with the next call, or now where no other is under way."""
        with self._lock:
            self._ended.append((name, embedded, counts.to_plain()))
            self._under_way -= 1
            if self._under_way:
                return
            ended, self._ended = self._ended, []
        self._attempts.end_blocks.remote(self._actor, ended)

    def begin(self, task: str) -> int:
        """Notes that this process works on `task`; returns the ends that came amid it so far."""
        deaths: int = self._ask("begin", self._actor, task)
        return deaths

    def done(self, task: str, *, embedded: bool) -> None:
        """Notes that `task` is done. Nobody waits: what this process says comes in order."""
        self._attempts.done.remote(self._actor, task, embedded=embedded)

    def run_counts(self) -> Counts:
        """The sums of the whole run so far."""
        counts: Counts = self._ask("snapshot")
        return counts

    def report(self, reason: str) -> None:
        """Notes why this process is about to end itself."""
        self._ask("report", self._actor, reason)

    def deaths(self, tasks: Sequence[str]) -> list[int]:
        """The ends that came amid each task."""
        deaths: list[int] = self._ask("deaths", tasks)
        return deaths

    def ends(self) -> int:
        """The ends on this device since something was embedded there."""
        ends: int = self._ask("ends", self._actor)
        return ends

    def _ask(self, method: str, *args: object) -> Any:
        import ray  # noqa: PLC0415

        return ray.get(getattr(self._attempts, method).remote(*args))
