"""Free memory full of NaN, which shows where something is read that nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from encoder import is_out_of_memory

# Left to libraries and, on a GPU that others use, to them.
_LEFT_BYTES = 2 * 2**30


@contextmanager
def poisoned(device: torch.device, most_bytes: int | None = None) -> Iterator[None]:
    """Fills free memory with NaN before the block, and gives it back after it.

    Nothing that is made within may be kept: a weight or a table in it would hold all of it, and
    leave nothing to fill the next time.

    Args:
        device: Whose memory.
        most_bytes: How much of a GPU's memory to fill; None fills nearly all that is free.
    """
    sizes = [2**12] * 64 + [2**16] * 16
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        # In one piece, so that all that comes next is cut from it.
        free = max(0, torch.cuda.mem_get_info()[0] - _LEFT_BYTES)
        sizes.append((free if most_bytes is None else min(free // 2, most_bytes)) // 4)
    # They are free before anything is run, and stay with PyTorch until the end.
    spoiled = [_full_of_nan(size, device) for size in sizes]
    del spoiled
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _full_of_nan(size: int, device: torch.device) -> torch.Tensor:
    """Float32 of the size, or of a half, a quarter... where a memory fraction allows no more."""
    while size:
        try:
            return torch.full((size,), float("nan"), device=device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        size //= 2
    return torch.empty(0, device=device)
