"""What a CPU build of PyTorch lacks for fake tensors of `cuda`, put in its place for a test.

Some of PyTorch's own code asks for CUDA's device guard before it looks at what kind of tensor it
has, and a CPU build has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.support.simulated_gpu import Block
from tests.support.simulated_streams import Stream

aten = torch.ops.aten


class HostWaitsError(Exception):
    """Code made the host wait for the device, where it must not."""


def patch_tensors(patch: pytest.MonkeyPatch) -> None:
    """Lasts until `patch` is undone."""
    # Without an index, the device guard is asked which device is meant.
    to = torch.Tensor.to
    patch.setattr(torch.Tensor, "to", lambda x, *a, **k: to(x, *map(_indexed, a), **_indexed(k)))
    # Indexing asks for CUDA's device guard, which a CPU build has none of.
    patch.setattr(FakeTensor, "__getitem__", get_item)
    patch.setattr(FakeTensor, "record_stream", _record_stream)
    # These wait, and some ask for the device guard before they say so.
    for name in (
        "item",
        "tolist",
        "nonzero",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
    ):
        patch.setattr(FakeTensor, name, _refusal(name))


def _indexed(given: Any) -> Any:
    """Names the device that `cuda` alone means."""
    if isinstance(given, dict):
        return {name: _indexed(x) for name, x in given.items()}
    if isinstance(given, (str, torch.device)) and str(given) == "cuda":
        return torch.device("cuda", 0)
    return given


def _refusal(name: str) -> Callable[..., None]:
    def refuse(x: FakeTensor, *_: Any, **__: Any) -> None:
        raise HostWaitsError(f"Tensor.{name} needs values of the device")

    return refuse


def _record_stream(x: FakeTensor, stream: Stream) -> None:
    stream.gpu.call("record a stream")
    block: Block = x.simulated_block
    block.record_stream(stream)


def get_item(x: torch.Tensor, at: Any) -> torch.Tensor:
    """Indexing with whole numbers, slices, `None`, an ellipsis and tensors, by single views."""
    at = at if isinstance(at, tuple) else (at,)
    if Ellipsis in [a for a in at if not isinstance(a, torch.Tensor)]:
        n = next(n for n, a in enumerate(at) if a is Ellipsis)
        missing = x.dim() - sum(a is not None for a in at) + 1
        at = (*at[:n], *[slice(None)] * missing, *at[n + 1 :])
    out, indices = x, []
    for a in at:
        if isinstance(a, int):
            out = aten.select.int(out, len(indices), a)
            continue
        if a is None:
            out = out.unsqueeze(len(indices))
        elif isinstance(a, slice) and a != slice(None):
            out = aten.slice.Tensor(out, len(indices), a.start, a.stop, a.step or 1)
        indices.append(a if isinstance(a, torch.Tensor) else None)
    if any(a is not None for a in indices):
        out = aten.index.Tensor(out, indices)
    return out
