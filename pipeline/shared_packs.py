"""One queue of segments for all calls under way: packs do not end with a call.

The calls' own threads see to all of it, each to whatever is due, whoever's it is:

- A pack is started as soon as the device has room, if it is full, or if nothing more can come, or
  if the device has nothing else to do. It takes the oldest call's segments first, so that no call
  waits behind younger ones, and whatever else fits.
- A pack's results are waited for by one of the calls that have a segment in it.

A thread sleeps only while others have all of this in hand, and each of them looks again at what
is due once it is done; so nobody sleeps for ever.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.block import Block, Failure

if TYPE_CHECKING:
    from encoder import PackResults, PackRunner
    from pipeline.watchdog import PackDeadlines

# Packs that the device works on: one that runs, and one that follows on while the host takes the
# results of the last and lays out the next. More would only hold more memory.
_ON_DEVICE = 2


@dataclass(kw_only=True, eq=False)
class _Call:
    """One call.

    Attributes:
        waiting: Its segments that are in no pack yet, from long to short.
        tokens: Of those.
        left: How many of its segments have not come to an end.
    """

    block: Block
    waiting: list[int]
    tokens: int
    left: int
    thread: int
    error: BaseException | None = None

    def take(self, room: int, *, at_least_one: bool) -> list[int]:
        """Removes and returns each waiting segment that still fits, from long to short.

        It takes the time of those that are taken, not of all that wait.

        Args:
            room: Tokens that the pack has room for.
            at_least_one: Whether the first is taken even if it does not fit.
        """
        lengths, waiting = self.block.lengths, self.waiting
        taken: list[int] = []
        kept: list[int] = []
        at = 0
        while at < len(waiting):
            length = lengths[waiting[at]]
            if length <= room or (at_least_one and not taken):
                taken.append(waiting[at])
                room -= length
                at += 1
            else:
                fits = bisect_left(waiting, -room, lo=at, key=lambda index: -lengths[index])
                kept += waiting[at:fits]
                at = fits
        self.waiting = kept
        self.tokens -= sum(lengths[index] for index in taken)
        return taken

    def drop(self) -> None:
        """Gives up what waits."""
        self.left -= len(self.waiting)
        self.waiting, self.tokens = [], 0


@dataclass(kw_only=True, eq=False)
class _Pack:
    """Segments of some calls, what comes of parts of them, and how long each part took."""

    places: list[tuple[_Call, int]]
    parts: list[tuple[slice, PackResults | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    limit: int | None = None

    def __post_init__(self) -> None:
        # Stills first, so that kinds are two runs at most, and equal lengths are neighbours.
        self.places.sort(key=lambda place: _shape(*place))
        self.calls = {call for call, _ in self.places}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """`(h, w)` a segment, in patches."""
        segments = [call.block.segments[index] for call, index in self.places]
        return [(s.height, s.width) for s in segments]

    def start(self, runner: PackRunner) -> None:
        levels = [call.block.levels(index) for call, index in self.places]
        self.parts = runner.start(levels, self.sizes)

    def wait(self) -> None:
        for _, results in self.parts:
            if results is not None:
                results.wait()
        self.seconds = [0.0 if results is None else results.seconds for _, results in self.parts]

    def keep(self) -> None:
        """Puts the results where they belong."""
        for part, results in self.parts:
            if results is None:
                for call, index in self.places[part]:
                    failure = Failure("one segment does not fit in memory")
                    call.block.failures[call.block.segments[index].item] = failure
                continue
            vectors, tokens = results.vectors.numpy(), results.tokens.numpy()
            finite, at = results.finite.numpy(), 0
            for (call, index), vector in zip(self.places[part], vectors, strict=True):
                end = at + call.block.lengths[index]
                call.block.fill(index, vector, tokens[at:end], finite[at:end])
                at = end

    def count(self) -> None:
        """Adds up what it took."""
        for (part, results), seconds in zip(self.parts, self.seconds, strict=True):
            if results is not None:
                counts = self.places[part.start][0].block.counts
                counts.seconds += seconds
                counts.flop += results.flop


class SharedPacks:
    """Encodes segments of blocks, in packs that calls share.

    Args:
        runner: Runs packs.
        budget: Most tokens of a pack.
        calls: The most calls at once: how many there are when no other can come.
        deadlines: Those of packs, if they have any.
    """

    def __init__(
        self,
        runner: PackRunner,
        *,
        budget: int,
        calls: int,
        deadlines: PackDeadlines | None = None,
    ) -> None:
        self._runner = runner
        self._deadlines = deadlines
        # Every thread that has ever worked on a GPU keeps handles and workspaces of its own there.
        self._starter = ThreadPoolExecutor(1, "packs")
        self._budget = budget
        self._most_calls = calls
        # Held whenever anything below is looked at or changed; each change is told.
        self._changed = threading.Condition(threading.Lock())
        self._calls: list[_Call] = []  # The oldest first.
        self._started: list[_Pack] = []  # Those that no thread waits for yet, the oldest first.
        self._on_device = 0
        self._starting = False
        self._owner: int | None = None

    def __call__(self, block: Block, segments: Sequence[int]) -> None:
        """Fills in what comes of some segments of a block, or why nothing does.

        Raises:
            BaseException: Whatever a pack with one of them has ended with, but for want of
                memory. Other calls with segments in that pack raise it too.
        """
        tokens = sum(block.lengths[index] for index in segments)
        call = _Call(
            block=block,
            waiting=sorted(segments, key=lambda index: -block.lengths[index]),
            tokens=tokens,
            left=len(segments),
            thread=threading.get_ident(),
        )
        block.counts.tokens += tokens
        with self._changed:
            self._calls.append(call)
            try:
                while not self._advance(call):
                    pass
            finally:
                self._calls.remove(call)
        if call.error is not None:
            raise call.error

    def use_threads(self, threads: int) -> None:
        """Lets packs on a CPU have so many threads from now on."""
        import torch  # noqa: PLC0415 (only the actor pays its second)

        # PyTorch keeps the number for each thread that asks for work.
        self._starter.submit(torch.set_num_threads, threads).result()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other threads' packs off the device, whose work for them is done by then."""
        with self._changed:
            self._changed.wait_for(lambda: self._owner is None)
            self._owner = threading.get_ident()
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._on_device)
            self._runner.synchronize()  # Of a pack that failed, some of the work may go on.
            yield
        finally:
            with self._changed:
                self._owner = None
                self._changed.notify_all()

    def _advance(self, call: _Call) -> bool:
        """Does one thing that is due, or waits for others to; returns whether `call` is done.

        A call that is done still starts what is due: its return may be what the device waits for.
        """
        if due := self._take_due():
            self._start(due)
        elif not call.left:
            return True
        elif (pack := next((p for p in self._started if call in p.calls), None)) is not None:
            self._started.remove(pack)
            self._finish(pack)
        else:
            self._changed.wait()
        return False

    def _take_due(self) -> list[tuple[_Call, int]]:
        """Takes the segments of the pack that should be started now, if any.

        The oldest call's come first, so that no call waits behind younger ones, and then whatever
        fits.
        """
        if self._starting or self._on_device == _ON_DEVICE:
            return []
        own = [call for call in self._calls if self._owner in (None, call.thread)]
        more_may_come = len(self._calls) < self._most_calls
        if self._on_device and more_may_come and sum(c.tokens for c in own) < self._budget:
            return []
        due: list[tuple[_Call, int]] = []
        room = self._budget
        for call in own:
            for index in call.take(room, at_least_one=not due):
                due.append((call, index))
                room -= call.block.lengths[index]
        return due

    def _start(self, places: list[tuple[_Call, int]]) -> None:
        self._count(places)
        self._starting = True
        self._on_device += 1
        pack = _Pack(places=places)
        error = self._unlocked(lambda: self._run(pack))
        self._starting = False
        if error is None:
            self._started.append(pack)
        else:
            self._on_device -= 1
            self._end_limit(pack, error)
            self._end(pack, error)
        self._changed.notify_all()

    def _run(self, pack: _Pack) -> None:
        if self._deadlines is not None:
            pack.limit = self._deadlines.begin(pack.sizes)
        self._starter.submit(pack.start, self._runner).result()

    def _end_limit(self, pack: _Pack, error: BaseException | None) -> None:
        if self._deadlines is not None and pack.limit is not None:
            self._deadlines.end(pack.limit, None if error else sum(pack.seconds))

    def _finish(self, pack: _Pack) -> None:
        error = self._unlocked(pack.wait)
        self._end_limit(pack, error)
        self._on_device -= 1
        self._changed.notify_all()  # Another may start the next pack meanwhile.
        if error is None:
            pack.count()
            error = self._unlocked(pack.keep)
        self._end(pack, error)
        self._changed.notify_all()

    def _end(self, pack: _Pack, error: BaseException | None) -> None:
        for call, _ in pack.places:
            call.left -= 1
        if error is None:
            return
        for call in pack.calls:
            call.error = call.error or error
            # Its other packs on the device come to an end too, before it does.
            call.drop()

    def _count(self, places: list[tuple[_Call, int]]) -> None:
        first = places[0][0]
        tokens = sum(call.block.lengths[index] for call, index in places)
        # Where a call has no other to share a pack with, its last one could hold no more.
        last = self._most_calls == 1 and not first.waiting
        first.block.counts.capacity += tokens if last else max(tokens, self._budget)

    def _unlocked(self, work: Callable[[], object]) -> BaseException | None:
        """Does what takes long while others go on; returns what it raised, which is its calls'."""
        self._changed.release()
        try:
            work()
        except BaseException as error:
            return error
        finally:
            self._changed.acquire()
        return None


def _shape(call: _Call, index: int) -> tuple[int, int]:
    return call.block.values(index), -call.block.lengths[index]
