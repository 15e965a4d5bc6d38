"""Copies to a device that nobody waits for."""

import torch


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor of the host's to a device, behind the work that is queued there.

    To a GPU it goes through pinned memory, which PyTorch keeps until the copy is done: from any
    other the host might wait for all that the GPU has yet to do.
    """
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
