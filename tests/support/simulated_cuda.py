"""PyTorch's operations on a simulated GPU, where tensors say that they are on `cuda`.

A tensor of the device is a `FakeTensor`: PyTorch's own rules give its shape, dtype, strides and
device, as on CUDA. Its values, if the device keeps any, lie in the host's memory and are computed
on the CPU when the simulated stream gets there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from encoder import Glm4vVisionModel
from encoder.reference import attention
from tests.support.cuda_patches import HostWaitsError, patch_tensors
from tests.support.simulated_gpu import Block, Gpu, poison

aten = torch.ops.aten


class MixedDevicesError(Exception):
    """An operation was given tensors of the host and of the device."""


@dataclass(frozen=True)
class Operation:
    """One that ran on the device.

    Attributes:
        name: Of the overload, `aten.linear.default`.
        dtypes: Of the tensors that it was given.
        results: Shape and dtype of each tensor that it returned.
    """

    name: str
    dtypes: tuple[torch.dtype, ...]
    results: tuple[tuple[torch.Size, torch.dtype], ...]


class SimulatedCuda(TorchDispatchMode):
    """Runs operations on tensors of `cuda` on a simulated GPU, in one thread.

    Args:
        gpu: The device, installed.
        may_wait: Whether copies may wait for the device.

    Raises:
        MixedDevicesError: By an operation, other than a copy, with tensors of host and device.
        HostWaitsError: By a copy, where `may_wait` is false; by anything else, always.
    """

    def __init__(self, gpu: Gpu, *, may_wait: bool = False) -> None:
        super().__init__()
        self.gpu = gpu
        self.operations: list[Operation] = []
        self.may_wait = may_wait
        self.varlen: Callable[..., tuple[torch.Tensor, ...]] = varlen
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)

    def put(self, model: Glm4vVisionModel) -> Glm4vVisionModel:
        """Returns a copy of a model on the device; parameters of `meta` get no values there."""
        state = {}
        for name, x in model.state_dict().items():
            state[name] = self._new(x.size(), x.stride(), x.dtype)
            if not x.is_meta:
                _value(state[name]).copy_(x)
        dtype = model.downsample.weight.dtype
        found = Glm4vVisionModel(model.config, device="meta", dtype=dtype)
        with self:
            found.load_state_dict(state, assign=True)
        return found.eval().requires_grad_(False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        given = [x for x in leaves if isinstance(x, torch.Tensor)]
        fakes = [x for x in given if isinstance(x, FakeTensor)]
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        to_cuda = any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves)
        if func.overloadpacket is aten.to and (fakes or to_cuda):
            with self:
                return func.decompose(*args, **kwargs)
        if not fakes and not to_cuda:
            return self._on_host(func, args, kwargs)
        if func is aten._to_copy.default:
            return self._converted(args[0], **kwargs)
        if len(fakes) < len(given):
            if func is aten.copy_.default:
                return self._copied(*args, **kwargs)
            raise MixedDevicesError(f"{func} is given tensors of the host and of the device")
        return self._on_device(func, args, kwargs, fakes)

    def _on_host(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten.is_pinned.default:
            return self.gpu.is_pinned(args[0])
        if func in (aten.pin_memory.default, aten._pin_memory.default):
            self.gpu.call("pin")
            return self.gpu.pin(args[0].clone())
        pins = kwargs.pop("pin_memory", False)
        out = func(*args, **kwargs)
        if pins:
            self.gpu.call("pin")
            self.gpu.pin(poison(out))
        return out

    def _on_device(
        self, func: Any, args: Any, kwargs: dict[str, Any], fakes: list[FakeTensor]
    ) -> Any:
        try:
            with self._shapes:
                out = func(*args, **kwargs)
        except (
            torch._subclasses.fake_tensor.DataDependentOutputException,
            torch._subclasses.fake_tensor.DynamicOutputShapeException,
        ) as error:
            raise HostWaitsError(f"{func} needs values of the device") from error
        found = [x for x in tree_leaves(out) if isinstance(x, FakeTensor)]
        assert all(x.device.type == "cuda" for x in found), func
        blocks = {_storage(x): _block(x) for x in fakes}
        new = [x for x in found if _storage(x) not in blocks]
        if not new and not func._schema.is_mutable:
            for x in found:
                x.simulated_block = blocks[_storage(x)]
            return out  # Views, which the driver knows nothing of.
        self.operations.append(
            Operation(
                str(func), tuple(x.dtype for x in fakes), tuple((x.shape, x.dtype) for x in found)
            )
        )
        fault = self.gpu.call(str(func))
        for x in new:
            if _storage(x) not in blocks:
                blocks[_storage(x)] = self._allocated(x)
        for x in found:
            x.simulated_block = blocks[_storage(x)]
        if self.gpu.keeps_values:
            run = self.varlen if "_varlen_attn" in str(func) else func
            work = _work(run, tree_map(_value, args), tree_map(_value, kwargs), _values(new))
        else:
            work = _nothing
        self.gpu.submit(self.gpu.current_stream(), work, fault=fault)
        return out

    def _converted(
        self,
        x: torch.Tensor,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        non_blocking: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        """A copy of another dtype, or on the other side."""
        target = x.device if device is None else device
        if target.type == x.device.type:
            assert isinstance(x, FakeTensor)
            options |= {"dtype": dtype, "non_blocking": non_blocking}
            out = self._on_device(aten._to_copy.default, (x,), options, [x])
            assert isinstance(out, torch.Tensor)
            return out
        shape = torch.empty_like(x, dtype=dtype, device="meta")  # Its strides are of x or dense.
        if target.type == "cuda":
            out: torch.Tensor = self._new(shape.size(), shape.stride(), shape.dtype)
        else:
            out = torch.empty_strided(shape.size(), shape.stride(), dtype=shape.dtype, device="cpu")
            poison(out)
            if non_blocking:  # PyTorch pins what a copy that nobody waits for goes to.
                self.gpu.pin(out)
        return self._copied(out, x, non_blocking)

    def _copied(
        self, to: torch.Tensor, x: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        """Copies from the one side to the other."""
        if not x.numel():
            return to
        host = x if isinstance(to, FakeTensor) else to
        waits = not (non_blocking and self.gpu.is_pinned(host))
        if waits and not self.may_wait:
            raise HostWaitsError(
                f"a copy of {tuple(x.shape)} to {to.device.type} makes the host wait: "
                f"non_blocking={non_blocking}, pinned={self.gpu.is_pinned(host)}"
            )
        fault = self.gpu.call("copy")
        stream = self.gpu.current_stream()
        work: Callable[[], object] = _nothing
        if self.gpu.keeps_values:
            work = partial(_value(to).copy_, _value(x))
        self.gpu.submit(stream, work, fault=fault)
        if waits:
            self.gpu.finish(stream)
        return to

    def _new(self, size: Any, stride: Any, dtype: torch.dtype) -> FakeTensor:
        with self._shapes:
            found = torch.empty_strided(size, stride, dtype=dtype, device="cuda")
        assert isinstance(found, FakeTensor)
        found.simulated_block = self._allocated(found)
        return found

    def _allocated(self, fake: torch.Tensor) -> Block:
        size = fake.untyped_storage().nbytes() // fake.dtype.itemsize
        return self.gpu.allocate(size, fake.dtype)


def simulate(
    gpu: Gpu,
    patch: pytest.MonkeyPatch,
    *,
    capability: tuple[int, int] = (9, 0),
    may_wait: bool = False,
) -> SimulatedCuda:
    """Patches what a CPU build of PyTorch lacks for tensors of `cuda`, until `patch` is undone."""
    gpu.install(patch, capability)
    patch_tensors(patch)
    return SimulatedCuda(gpu, may_wait=may_wait)


def varlen(
    query_NHE: torch.Tensor,
    key_NHE: torch.Tensor,
    value_NHE: torch.Tensor,
    offsets: torch.Tensor,
    _: torch.Tensor,
    longest: int,
    *__: Any,
) -> tuple[torch.Tensor]:
    """What the kernel of CUDA does; rows of no segment stay unwritten."""
    ends = offsets.tolist()
    assert offsets.dtype == torch.int32 and longest == max(b - a for a, b in pairwise(ends))
    out_NHE = torch.full_like(query_NHE, float("nan"))
    for a, b in pairwise(ends):
        qkv = (x[a:b].float() for x in (query_NHE, key_NHE, value_NHE))
        out_NHE[a:b] = attention(*qkv).to(query_NHE.dtype)
    return (out_NHE,)


def _work(run: Any, args: Any, kwargs: Any, new: list[torch.Tensor]) -> Callable[[], None]:
    def work() -> None:
        if not new:
            run(*args, **kwargs)  # In place.
            return
        found = [x for x in tree_leaves(run(*args, **kwargs)) if isinstance(x, torch.Tensor)]
        # What CUDA's kernels return beside the results differs from the CPU's: it stays unwritten.
        for target, x in zip(new, found, strict=False):
            if target.shape == x.shape:
                target.copy_(x)

    return work


def _value(x: Any) -> Any:
    """A tensor's values, a device's stand-in, anything else as it is."""
    if isinstance(x, torch.device):
        return torch.device("cpu")
    if not isinstance(x, FakeTensor):
        return x
    values = _block(x).values
    assert values is not None and values.dtype == x.dtype
    return values.as_strided(x.size(), x.stride(), x.storage_offset())


def _values(fakes: list[FakeTensor]) -> list[torch.Tensor]:
    return [_value(x) for x in fakes]


def _block(x: FakeTensor) -> Block:
    found: Block = x.simulated_block
    return found


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage()._cdata


def _nothing() -> None:
    pass
