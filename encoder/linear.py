"""Matrix products with weights, by the fastest library that the device has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, which on a CPU goes through oneDNN instead of MKL where no gradients are kept.

    MKL holds other makers' CPUs back: on one core of an AMD EPYC, 1,024 rows of 128 to 1,536
    values took it twice as long (95 against 175 to 210 GFLOP/s). Weights are taken as they are:
    packed ones gain another tenth, and could go stale. oneDNN makes a kernel for each new number
    of rows, in 0.2 ms, and gives a row the same bits in any number of them from two on. It adds up
    long sums one by one, MKL in blocks: the default tower is off by 3e-6 so, not 1.4e-6.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features].
        bias: [out_features].

    Returns:
        [..., out_features].
    """
    if takes_onednn(x, weight, *([] if bias is None else [bias])):
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def takes_onednn(*given: torch.Tensor) -> bool:
    """Whether products of these go through oneDNN; a compiler knows better what to do with them."""
    return (
        _HAS_ONEDNN
        and not torch.compiler.is_compiling()
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in given)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in given))
    )
