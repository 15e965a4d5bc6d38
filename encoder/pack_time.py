"""How long packs keep their device, and what it could have done meanwhile."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch

from encoder.out_of_memory import is_out_of_memory

_SIDE = 8192
_TIMES = 3


class PackSpan:
    """What a pack's work takes on its device, from where this is made to where it is ended.

    On CUDA it is told by events in the work's own stream, which nobody waits for. What that stream
    waits for before, such as patches on their way, is left out if this is made after it.
    """

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self._device = device
        self._began = self._now()

    def end(self) -> None:
        """Comes after the last piece of work."""
        self._ended = self._now()

    @property
    def seconds(self) -> float:
        """How long it took; on CUDA once the work is known to be done, as its results are there."""
        if self._device == "cpu":
            found: float = self._ended - self._began
        else:
            found = self._began.elapsed_time(self._ended) / 1000
        return found

    def _now(self) -> Any:
        if self._device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def ceiling_flop_s(device: Literal["cpu", "cuda"], dtype: torch.dtype) -> float:
    """Measures a device by large matrix products; a multiply-add is two operations.

    Returns:
        Operations a second of the fastest of a few; 0 where they are not measured: on a CPU, and
        where there is no memory for them.
    """
    if device == "cpu":
        return 0.0
    try:
        # Of constants, a device is faster than of anything that one computes with.
        square = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
        out = torch.empty_like(square)
        best_s = min(_product_s(square, out) for _ in range(1 + _TIMES))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    return 2 * _SIDE**3 / best_s


def _product_s(square: torch.Tensor, out: torch.Tensor) -> float:
    span = PackSpan("cuda")
    torch.mm(square, square, out=out)
    span.end()
    torch.cuda.synchronize()
    return span.seconds
