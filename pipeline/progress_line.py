"""How far a run is, for people: a live view on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from pipeline.pace import Pace
from pipeline.progress import Counts
from pipeline.workers import Workers

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_LIVE_S = 0.5
_LOGGED_S = 5.0
# Columns: a terminal narrower than the first has a short bar; than the second, no line a stage.
_WIDE, _NARROW = 100, 80
# A log's disk is full, a terminal gone or closed; at a broken pipe, rich raises the last.
_UNSHOWN = (OSError, ValueError, SystemExit)


class ProgressLine:
    """A live view on a terminal; in a log, a plain line every few seconds.

    `watch` is shown every newest sum, in the line's own thread, whether or not people can be.
    """

    def __init__(
        self,
        counter: ActorHandle[Any],
        total: int,
        *,
        workers: Workers,
        watch: Callable[[Counts], None],
    ) -> None:
        self._counter, self._total, self._workers = counter, total, workers
        self._show = watch
        self._console = Console(stderr=True, highlight=False)
        self.pace = Pace(total, workers, began=time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def refresh(self) -> None:
        """Asks the actor once more."""
        import ray  # noqa: PLC0415 (the command line's other jobs do without)

        counts = cast(Counts, ray.get(self._counter.snapshot.remote()))
        counts.driver_s = time.process_time()
        self.pace.add(time.monotonic(), counts)

    def view(self, width: int) -> RenderableType:
        """What a terminal of so many columns shows."""
        done = min(self.pace.counts.items, self._total)
        bar = ProgressBar(self._total, done, width=24 if width >= _WIDE else 10)
        first = _row(1, bar, f"{done:,}/{self._total:,}", self._rates())
        recent = self.pace.recent
        if recent is None or width < _NARROW:
            return first
        return Group(first, *(_row(2, f"{name:10}", line) for name, line in recent.lines().items()))

    def text(self) -> str:
        """What a log shows."""
        done = min(self.pace.counts.items, self._total)
        recent = "" if self.pace.recent is None else f"  {self.pace.recent.in_short()}"
        return f"{done:,} of {self._total:,} items  {self._rates()}{recent}"

    def _watch(self) -> None:
        with ExitStack() as stack:
            show = self._on_terminal(stack) if self._console.is_terminal else self._in_log()
            while not self._stop.wait(_LIVE_S):
                self._refresh_quietly()
                with suppress(*_UNSHOWN):
                    show()

    def _on_terminal(self, stack: ExitStack) -> Callable[[], None]:
        live = Live(
            console=self._console,
            transient=True,
            auto_refresh=False,
            get_renderable=lambda: self.view(self._console.width),
        )
        stack.push(suppress(*_UNSHOWN))  # Leaving it writes, too.
        with suppress(*_UNSHOWN):
            stack.enter_context(live)
        return live.refresh

    def _in_log(self) -> Callable[[], None]:
        logged = time.monotonic()

        def show() -> None:
            nonlocal logged
            if time.monotonic() >= logged + _LOGGED_S:
                logged = time.monotonic()
                print(self.text(), file=sys.stderr, flush=True)

        return show

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except Exception:  # The run itself reports why its cluster is gone, if it is.
            return
        self._show(self.pace.counts)

    def _rates(self) -> str:
        counts, recent = self.pace.counts, self.pace.recent
        if not counts.items:
            return f"starting {self._workers}"
        if recent is None:
            return f"{counts.failed:,} errors"
        items_s = recent.encode.items_s
        left = max(self._total - counts.items, 0)
        eta = _duration(left / items_s) if items_s else "?"
        rates = f"{items_s:,.1f} items/s  {recent.tokens_s:,.0f} tokens/s"
        return f"{rates}  {counts.failed:,} errors  {eta} left"


def _row(gap: int, *cells: RenderableType) -> Table:
    """One line, however narrow the terminal is."""
    row = Table.grid(*(Column(no_wrap=True) for _ in cells), padding=(0, gap))
    row.add_row(*cells)
    return row


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
