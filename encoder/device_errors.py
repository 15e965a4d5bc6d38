"""Which errors say that a device can do nothing more for this process."""

import torch

from encoder.out_of_memory import is_out_of_memory

# After any of these a process's CUDA context answers nothing but errors.
_SIGNS = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "_STATUS_EXECUTION_FAILED",  # cuBLAS's and cuDNN's, as are the next.
    "_STATUS_INTERNAL_ERROR",
    "_STATUS_MAPPING_ERROR",
    "_STATUS_NOT_INITIALIZED",
)
# Triton made code that this GPU cannot load: a failed compilation, and the context is well.
_NOT_LOADED = "Triton Error [CUDA]: device kernel image is invalid"


def is_device_error(error: BaseException) -> bool:
    """Returns whether an error leaves the process's device unusable.

    Running out of memory does not.
    """
    if not isinstance(error, Exception) or (
        isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
    ):
        return False
    text = str(error)
    return isinstance(error, torch.AcceleratorError) or (
        any(sign in text for sign in _SIGNS) and _NOT_LOADED not in text
    )
