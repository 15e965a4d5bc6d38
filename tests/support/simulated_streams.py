"""Streams and events of a simulated GPU, and when streams may do their work."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.support.simulated_gpu import Gpu

Kind = Literal["out of memory", "sticky", "late", "hang"]
Order = Callable[["Stream"], bool]


def latest(stream: Stream) -> bool:
    """No stream works before somebody waits for it."""
    return False


def earliest(stream: Stream) -> bool:
    """Each stream works as soon as it may."""
    return True


def side_streams_first(stream: Stream) -> bool:
    """Side streams work at once, the default stream only when somebody waits for it."""
    return not stream.default


def default_stream_first(stream: Stream) -> bool:
    """The default stream works at once, side streams only when somebody waits for them."""
    return stream.default


def any_order(seed: int) -> Order:
    """Streams work at times that a seed decides."""
    choose = random.Random(seed)
    return lambda stream: choose.random() < 0.5


@dataclass(frozen=True)
class Fault:
    """What goes wrong at one call to the driver.

    Attributes:
        at: The call's index in `Gpu.calls`.
        kind: `out of memory`: that call raises, the next ones work. `sticky`: it raises, and so
            does each call after it. `late`: it returns, its work fails once it is done, and each
            call after that raises. `hang`: it returns, and its work never ends.
    """

    at: int
    kind: Kind


@dataclass(eq=False)
class Work:
    """A piece of work in a stream's queue."""

    run: Callable[[], object]
    waits_for: Event | None = None
    fault: Kind | None = None
    done: bool = False


@dataclass(eq=False)
class Stream:
    """Stands for `torch.cuda.Stream`: work in the order of the calls."""

    gpu: Gpu
    default: bool = False
    queue: deque[Work] = field(default_factory=deque)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(self.gpu.record(other))

    def wait_event(self, event: Event) -> None:
        fault = self.gpu.call("wait")
        if event.work is not None:
            self.gpu.submit(self, _nothing, waits_for=event, fault=fault)

    def record_event(self, event: Event | None = None) -> Event:
        return self.gpu.record(self, event)

    def synchronize(self) -> None:
        self.gpu.call("synchronize a stream")
        self.gpu.finish(self)


@dataclass(eq=False)
class Event:
    """Stands for `torch.cuda.Event`."""

    gpu: Gpu
    enable_timing: bool = False
    blocking: bool = False
    stream: Stream | None = None
    work: Work | None = None
    time_ms: float = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.gpu.record(stream or self.gpu.current_stream(), self)

    def query(self) -> bool:
        self.gpu.call("query an event")
        return self.work is None or self.work.done

    def synchronize(self) -> None:
        self.gpu.call("synchronize an event")
        if self.work is not None and self.stream is not None:
            self.gpu.finish(self.stream, self.work)

    def elapsed_time(self, end: Event) -> float:
        self.gpu.call("elapsed time")
        assert self.enable_timing and end.enable_timing
        for event in (self, end):
            if event.work is None or not event.work.done:
                raise RuntimeError("CUDA error: device not ready")
        return end.time_ms - self.time_ms


def _nothing(*_: Any) -> None:
    pass
