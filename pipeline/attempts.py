"""What the encoders' processes ended at, remembered where the end of none of them reaches.

Ray starts an actor whose process has ended again, and gives it its calls again, for ever. One
small actor beside the driver remembers what every process was at, so that what keeps ending
processes is found, and is the right one of two:

- an item. After `MOST_DEATHS` ends a block is done item by item, each announced and alone; the
  item that ends as many processes when alone is the one (`Encode`).
- a device. After `MOST_ENDS` ends in a row, nothing embedded in between, it is set aside: its
  actors pass their blocks on to others, as long as enough devices are left (`Devices`).

Every end counts once and alike, be it a device error that the process ended itself for, a crash
or a signal: it is seen when the actor's next process starts. An end is held against all that was
under way in the process; a block that was there by chance is done more slowly, no worse.

It also remembers what an encoder of each GPU model computes with (`Ladder`), and what the user
should hear of encoders.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.devices import Devices
from pipeline.errors import DeviceError
from pipeline.rungs import Ladder, Rung

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from pipeline.config import ComputeDevice
    from pipeline.notes import Ended
    from pipeline.progress import Counts

# A task that was under way at so many ends is suspected, or, if it was alone, found guilty.
MOST_DEATHS = 2


@dataclass
class _Process:
    """What one process is at, and what it computes with."""

    device: str
    tasks: set[str] = field(default_factory=set)
    reason: str = ""
    model: str = ""
    kind: ComputeDevice = "cpu"


@dataclass(frozen=True, kw_only=True)
class Other:
    """Who does a block of an encoder whose device is set aside.

    Attributes:
        actor: Another encoder; empty if none can now.
        handle: Of it.
        failure: Why the run cannot go on; None if it can.
        unfit: Encoders whose devices are set aside.
    """

    actor: str = ""
    handle: ActorHandle[Any] | None = None
    failure: str | None = None
    unfit: int = 0


class Attempts:
    """The actor: tasks begun and not done, by process; ends, by task and by device.

    Args:
        devices: How many the run is to have.
    """

    def __init__(self, devices: int = 1) -> None:
        self._processes: dict[str, _Process] = {}
        self._deaths: Counter[str] = Counter()
        self._devices = Devices(devices)
        self._ladder = Ladder()
        self._encoders: dict[str, ActorHandle[Any]] = {}
        self._passed_on: Counter[str] = Counter()
        self._remarks: dict[str, None] = {}  # A set in order.

    def start(self, actor: str, device: str, handle: ActorHandle[Any] | None = None) -> bool:
        """Notes a new process of `actor`: if it had one before, that one has ended.

        Args:
            actor: An encoder's.
            device: That it runs on.
            handle: Of the actor; blocks may be passed on to it.

        Returns:
            Whether it may use the device: not if that is set aside.
        """
        self._devices.started(device)
        last = self._processes.get(actor)
        if last is not None:
            self._deaths.update(last.tasks)
            self._devices.ended(last.device, last.reason or "it crashed or was killed")
            self._forget(last.device)
        self._processes[actor] = _Process(device)
        if handle is not None:
            self._encoders[actor] = handle
        return not self._devices.is_set_aside(device)

    def rungs(self, actor: str, model: str, kind: ComputeDevice) -> list[Rung]:
        """Returns what the process of `actor`, on a device of a model, tries to compute with."""
        process = self._processes[actor]
        process.model, process.kind = model, kind
        return self._ladder.rungs(model, kind)

    def give_up(self, actor: str, rung: Rung, reason: str) -> Rung | None:
        """Notes that what the process of `actor` computes with has failed.

        Returns:
            What is to be used instead; None if there is nothing.
        """
        process = self._processes[actor]
        return self._ladder.give_up(process.model, process.kind, rung, process.device, reason)

    def set_aside(self, actor: str, why: str) -> None:
        """Lets no process use the device of `actor` any more."""
        device = self._processes[actor].device
        self._devices.set_aside(device, why)
        self._forget(device)

    def other_encoder(self) -> Other:
        """Returns who does a block of an encoder whose device is set aside."""
        failure = self._devices.failure()
        fit = [
            actor
            for actor in self._encoders
            if not self._devices.is_set_aside(self._processes[actor].device)
        ]
        if failure is not None or not fit:
            unfit = [p for p in self._processes.values() if self._devices.is_set_aside(p.device)]
            return Other(failure=failure, unfit=len(unfit))
        actor = min(fit, key=self._passed_on.__getitem__)
        self._passed_on[actor] += 1
        return Other(actor=actor, handle=self._encoders[actor])

    def clear_device(self, actor: str) -> None:
        """Notes that an item, and not the kernels on the device of `actor`, was at fault."""
        self._ladder.forget(self._processes[actor].device)

    def lose(self, actor: str) -> None:
        """Notes that `actor` has been released for good: it takes no more blocks."""
        self._encoders.pop(actor, None)

    def remark(self, line: str) -> None:
        """Notes what the user should hear of an encoder, once however many say it."""
        self._remarks[line] = None

    def remarks(self) -> list[str]:
        """Returns what the user should hear of devices and encoders so far, in lines."""
        return [*self._remarks, *self._ladder.lines(), *self._devices.lines()]

    def _forget(self, device: str) -> None:
        if self._devices.is_set_aside(device):
            self._ladder.forget(device)

    def begin(self, actor: str, task: str) -> int:
        """Notes that `actor` works on `task`; returns the ends that came amid it so far."""
        self._processes[actor].tasks.add(task)
        return self._deaths[task]

    def done(self, actor: str, task: str, *, embedded: bool) -> None:
        """Notes that `task` is done, and whether anything was embedded: its device is well."""
        process = self._processes[actor]
        process.tasks.discard(task)
        if embedded:
            self._devices.embedded(process.device)

    def report(self, actor: str, reason: str) -> None:
        """Notes why the process of `actor` is about to end itself."""
        process = self._processes[actor]
        process.reason = process.reason or reason  # What other calls fail with follows from it.

    def deaths(self, tasks: Sequence[str]) -> list[int]:
        """The ends that came amid each task."""
        return [self._deaths[task] for task in tasks]

    def ends(self, actor: str) -> int:
        """The ends on the device of `actor` since something was embedded there."""
        return self._devices.ends(self._processes[actor].device)


class OwnAttempts:
    """An encoder's own side, in an actor of Ray: it waits until what it says is noted."""

    def __init__(self, attempts: ActorHandle[Any]) -> None:
        import ray  # noqa: PLC0415 (the command line's other jobs do without)

        context = ray.get_runtime_context()
        self._handle: ActorHandle[Any] = context.current_actor
        gpus = context.get_accelerator_ids().get("GPU")
        self._attempts = self.notes = attempts
        self._actor = context.get_actor_id()
        node = f"{socket.gethostname()} ({context.get_node_id()[:8]})"
        self._lock = threading.Lock()
        self._ended: list[Ended] = []
        self._under_way = 0
        self.device = f"{node} gpu {','.join(gpus)}" if gpus else f"{node} cpu"

    def start(self) -> bool:
        """Notes that this process starts; returns whether it may use its device."""
        fit: bool = self._ask("start", self._actor, self.device, self._handle)
        return fit

    def rungs(self, model: str, kind: ComputeDevice) -> list[Rung]:
        """Returns what this process, on a device of a model, tries to compute with."""
        rungs: list[Rung] = self._ask("rungs", self._actor, model, kind)
        return rungs

    def give_up(self, rung: Rung, reason: str) -> Rung | None:
        """Notes that what this process computes with has failed; returns what to use instead."""
        found: Rung | None = self._ask("give_up", self._actor, rung, reason)
        return found

    def set_aside(self, why: str) -> None:
        """Lets no process use this device any more."""
        self._ask("set_aside", self._actor, why)

    def remark(self, line: str) -> None:
        """Notes what the user should hear of this process. Nobody waits."""
        self._attempts.remark.remote(line)

    def block_of(self, shard: str) -> None:
        """Notes that the calling task of Ray makes a block of a shard."""
        import ray  # noqa: PLC0415

        self._ask("block_of", ray.get_runtime_context().get_task_id(), shard)

    def other_encoder(self) -> Other:
        """Returns who does a block of this process, whose device is set aside.

        Raises:
            DeviceError: Too few devices are left.
        """
        other: Other = self._ask("other_encoder")
        if other.failure is not None:
            raise DeviceError(other.failure)
        return other

    def clear_device(self) -> None:
        """Notes that an item, and not the kernels on this device, was at fault."""
        self._ask("clear_device", self._actor)

    def lose(self, actor: str) -> None:
        """Notes that an actor has been released for good: it takes no more blocks."""
        self._ask("lose", actor)

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
