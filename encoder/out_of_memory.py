"""Which errors say that memory ran out."""

import torch

# What PyTorch's own exception for it does not cover: host memory, pinned memory, libraries'.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory ran out, of the host or of the device: no other fault of either."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in _OUT_OF_MEMORY
    )
