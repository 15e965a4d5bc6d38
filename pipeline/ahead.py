"""Several requests in flight: an object store's latency is hidden, and memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_REQUESTS = 16

Value = TypeVar("Value")
Result = TypeVar("Result")


def ahead(request: Callable[[Value], Result], values: Iterable[Value]) -> Iterator[Result]:
    """`request` of every value, in order; the next ones are under way meanwhile."""
    waiting: deque[Future[Result]] = deque()
    requests = ThreadPoolExecutor(_REQUESTS)
    try:
        for value in values:
            waiting.append(requests.submit(request, value))
            if len(waiting) > _REQUESTS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Whoever stops early, by Ctrl-C or by an error, does not wait for what is left.
        requests.shutdown(wait=False, cancel_futures=True)
