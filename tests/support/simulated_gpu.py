"""A GPU that is not there: its streams, events, memory and faults, under CUDA's rules.

Calls only queue work. When a stream does its work is the test's choice, within what waits and
events allow: as late as possible, as early as possible, or anything between. Memory that is new,
or free again, holds nothing of use. So code that waits too little gets wrong results, under one
order of work or another. `SimulatedCuda` runs PyTorch's operations on it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from tests.support.simulated_streams import Event, Fault, Kind, Order, Stream, Work, latest


class Block:
    """An allocation on the device; without contents where the device keeps no values.

    Once it is collected, its memory is anything's at once in the order of the stream that it was
    allocated on, or of the stream that it was recorded on: there it is overwritten.
    """

    def __init__(self, gpu: Gpu, values: int, dtype: torch.dtype) -> None:
        self.values: torch.Tensor | None = None
        if gpu.keeps_values:
            self.values = poison(torch.empty(values, dtype=dtype, device="cpu"))
        self._streams = [gpu.current_stream()]
        free = (gpu, values * dtype.itemsize, self.values, self._streams)
        weakref.finalize(self, _free, *free).atexit = False

    def record_stream(self, stream: Stream) -> None:
        self._streams.append(stream)


class Gpu:
    """A simulated device.

    Attributes:
        calls: The driver's calls since `begin`, by name.
        hanging: Set once a thread waits for work that never ends; `release` ends its wait.

    Args:
        order: Whether a stream may do its next work although nobody waits for it.
        memory: Bytes that may be allocated at once.
        keeps_values: Whether anything is computed, or only shapes, dtypes and devices kept.
    """

    def __init__(
        self,
        *,
        order: Order = latest,
        memory: int = 2**40,
        keeps_values: bool = True,
    ) -> None:
        self.calls: list[str] = []
        self.keeps_values = keeps_values
        self.hanging = threading.Event()
        self.free_bytes = memory
        self._order = order
        self._default = Stream(self, default=True)
        self._streams = [self._default]
        self._current = threading.local()
        self._pinned: list[torch.Tensor] = []
        self._changed = threading.Condition(threading.RLock())
        self._running = False
        self._released = False
        self._broken: str | None = None
        self._time_ms = 0.0
        self._fault: Fault | None = None

    def install(self, patch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        """Puts itself in the place of `torch.cuda`'s functions, of which a CPU build has none."""
        for name, stand_in in {
            "Stream": self.new_stream,
            "Event": lambda **options: Event(self, **options),
            "current_stream": self.current_stream,
            "stream": self.stream,
            "synchronize": self.synchronize,
            "empty_cache": partial(self.call, "empty cache"),
            "get_device_capability": lambda device=None: capability,
            "_lazy_init": _nothing,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)

    def begin(self, fault: Fault | None = None) -> None:
        """Counts calls from here on, of which one may fail."""
        self.calls.clear()
        self._fault = fault

    def call(self, name: str) -> Kind | None:
        """Counts a call; returns what will be wrong with its work."""
        with self._changed:
            if self._broken is not None:
                raise torch.AcceleratorError(self._broken)
            index = len(self.calls)
            self.calls.append(name)
            kind = None if self._fault is None or self._fault.at != index else self._fault.kind
            if kind == "out of memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if kind == "sticky":
                raise self._break("CUDA error: an illegal memory access was encountered")
            return kind

    def submit(
        self,
        stream: Stream,
        run: Callable[[], object],
        *,
        waits_for: Event | None = None,
        fault: Kind | None = None,
    ) -> Work:
        """Queues work."""
        with self._changed:
            work = Work(run, waits_for, fault)
            stream.queue.append(work)
            self._run_early()
        return work

    def record(self, stream: Stream, event: Event | None = None) -> Event:
        fault = self.call("record an event")
        found = event or Event(self)

        def note() -> None:
            found.time_ms = self._time_ms

        with self._changed:
            found.stream = stream
            found.work = Work(note, fault=fault)
            stream.queue.append(found.work)
            self._run_early()
        return found

    def finish(self, stream: Stream, last: Work | None = None) -> None:
        """Waits until a stream has done all its work, or a piece of it."""
        with self._changed:
            if last is None and stream.queue:
                last = stream.queue[-1]
            while last is not None and not last.done:
                event = stream.queue[0].waits_for
                if event is not None and event.stream is not None:
                    self.finish(event.stream, event.work)
                self._do_next(stream)

    def synchronize(self) -> None:
        self.call("synchronize the device")
        for stream in self._streams:
            self.finish(stream)

    def new_stream(self) -> Stream:
        self.call("create a stream")
        self._streams.append(Stream(self))
        return self._streams[-1]

    def current_stream(self) -> Stream:
        found: Stream = getattr(self._current, "stream", self._default)
        return found

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def allocate(self, values: int, dtype: torch.dtype) -> Block:
        with self._changed:
            if values * dtype.itemsize > self.free_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            self.free_bytes -= values * dtype.itemsize
        return Block(self, values, dtype)

    def pin(self, host: torch.Tensor) -> torch.Tensor:
        """Makes a host's tensor a pinned one, which stays: nothing else comes to lie there."""
        self._pinned.append(host)
        return host

    def is_pinned(self, host: torch.Tensor) -> bool:
        at = host.data_ptr()
        return any(own.data_ptr() <= at < own.data_ptr() + own.nbytes for own in self._pinned)

    def release(self) -> None:
        """Ends what hangs, as a driver's watchdog does: the device is broken."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def _run_early(self) -> None:
        if self._running or self._broken is not None:
            return
        self._running = True
        try:
            moved = True
            while moved:
                moved = False
                for stream in self._streams:
                    while self._is_ready(stream) and self._order(stream):
                        self._do_next(stream)
                        moved = True
        except torch.AcceleratorError:
            pass  # Whoever calls or waits next is told.
        finally:
            self._running = False

    def _is_ready(self, stream: Stream) -> bool:
        if not stream.queue or stream.queue[0].fault == "hang":
            return False
        event = stream.queue[0].waits_for
        return event is None or event.work is None or event.work.done

    def _do_next(self, stream: Stream) -> None:
        work = stream.queue[0]
        if work.fault == "hang":
            self.hanging.set()
            self._changed.wait_for(lambda: self._released)
            raise self._break("CUDA error: the launch timed out and was terminated")
        if self._broken is not None:
            raise torch.AcceleratorError(self._broken)
        if work.fault == "late":
            raise self._break("CUDA error: an illegal memory access was encountered")
        stream.queue.popleft()
        was_running, self._running = self._running, True
        try:
            with torch.inference_mode():
                work.run()
        finally:
            self._running = was_running
        self._time_ms += 1
        work.done = True

    def _break(self, message: str) -> torch.AcceleratorError:
        self._broken = message
        return torch.AcceleratorError(message)


def poison(x: torch.Tensor) -> torch.Tensor:
    """Fills a tensor with NaN, -1, 255 or false: what memory may hold that nobody has written."""
    if x.is_floating_point():
        return x.fill_(float("nan"))
    return x.fill_(255 if x.dtype == torch.uint8 else 0 if x.dtype == torch.bool else -1)


def _free(gpu: Gpu, size: int, values: torch.Tensor | None, streams: list[Stream]) -> None:
    gpu.free_bytes += size
    if values is not None:
        gpu.submit(streams[-1], partial(poison, values))


def _nothing(*_: Any) -> None:
    pass
