"""The Triton kernels of compiled blocks for CUDA, made, compiled and run without a GPU.

A process of its own, since it replaces parts of `torch.cuda`, and Triton reads TRITON_INTERPRET
as it is imported:

    python -m tests.support.inductor_kernels compile bfloat16 8.0 9.0
    TRITON_INTERPRET=1 python -m tests.support.inductor_kernels interpret float16 9.0

The blocks are traced on the CPU by `torch.compile` as the model calls it. The graph's tensors are
then said to be on `cuda`, and Inductor makes its code for a GPU of the given capability. `compile`
compiles every kernel, in every configuration that would be tried, to a cubin. `interpret` runs
blocks with the kernels in Triton's interpreter, products and attention on the CPU; `spoil` does
so with kernels that turn queries and keys the wrong way. A line of JSON comes back for each
capability.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.scheduler
import triton
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_heuristics
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

from encoder.attention import Segments
from encoder.blocks import Block
from encoder.config import PRESETS
from encoder.model import _compiled, _run_block
from tests.support.cuda_patches import get_item

# As wide as the default tower's.
CONFIG = PRESETS["large"]


class _CodeMadeError(Exception):
    """Inductor has made its code, which nobody loads."""


def pretend_gpu(capability: tuple[int, int]) -> None:
    """Makes Inductor and Triton find a GPU to make code for."""
    major, minor = capability
    properties = SimpleNamespace(
        name="simulated",
        gcnArchName="",
        type="cuda",
        index=0,
        major=major,
        minor=minor,
        total_memory=80 << 30,
        multi_processor_count=132,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448 if major == 9 else 166912,
        L2_cache_size=50 << 20,
    )
    state = torch.zeros(8, dtype=torch.uint8)
    for name, stand_in in {
        "_lazy_init": lambda: None,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "_get_device_properties": lambda device: properties,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: capability,
        "get_rng_state": lambda device=None: state,
        "set_rng_state": lambda *_: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "set_device": lambda index: None,
        "_DeviceGuard": lambda index: nullcontext(),
    }.items():
        setattr(torch.cuda, name, stand_in)
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", major * 10 + minor, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda index=0: 0,
        )
    )
    torch._inductor.scheduler.has_triton = lambda: True
    # Both ask for CUDA's device guard, which a CPU build has none of.
    FakeTensor.__getitem__ = get_item
    FakeTensor.copy_ = lambda x, source, waits=False: torch.ops.aten.copy_.default(x, source)


def cuda_code(graph: torch.fx.GraphModule) -> str:
    """Returns what Inductor makes of a graph, once its tensors are said to be on `cuda`."""

    def moved(x: Any) -> Any:
        if not isinstance(x, FakeTensor):
            return x
        with x.fake_mode:
            return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")

    for node in graph.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(moved, node.meta["val"])
    given = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    modes = [x.fake_mode for x in given if isinstance(x, FakeTensor)]
    found: list[str] = []

    def keep(lowering: GraphLowering) -> None:
        found.append(lowering.codegen()[0].value)
        raise _CodeMadeError

    context = torch._guards.TracingContext(modes[0])
    with (
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1),
        mock.patch.object(GraphLowering, "compile_to_module", keep),
        torch._guards.tracing(context),
    ):
        try:
            compile_fx_inner(graph, given)
        except (InductorError, _CodeMadeError):
            if not found:
                raise
    return found[0]


class Kernels:
    """Takes the place of Inductor's loader of kernels."""

    def __init__(
        self, folder: Path, made: Callable[[Any], Any], changes: dict[str, str] | None = None
    ) -> None:
        self.found: list[str] = []
        self._folder, self._made, self._changes = folder, made, changes or {}

    def triton(self, name: str, source: str, device_str: str) -> Any:
        assert device_str == "cuda"
        for before, after in {"triton_helpers.set_driver_to_gpu()": "", **self._changes}.items():
            source = source.replace(before, after)
        # Triton reads the source of what it compiles.
        path = self._folder / f"{len(self.found)}_{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.found.append(name)
        return self._made(getattr(module, name))

    def wait(self, scope: dict[str, Any]) -> None:
        pass


class Interpreted:
    """A kernel in Triton's interpreter, in large blocks: one program costs milliseconds."""

    def __init__(self, function: Any, signature: dict[str, str]) -> None:
        self._function, self._signature = function, signature

    def run(self, *args: Any, stream: int) -> None:
        kinds = self._signature
        given = dict(
            zip([n for n, kind in kinds.items() if kind != "constexpr"], args, strict=True)
        )
        blocks = {"XBLOCK": 1024 if "R0_BLOCK" not in kinds else 8, "YBLOCK": 8, "R0_BLOCK": 1024}
        grid = [
            -(-given[f"{axis}numel"] // blocks[f"{axis.upper()}BLOCK"])
            for axis in "xy"
            if f"{axis}numel" in given
        ]
        constants = {n: blocks[n] for n, kind in kinds.items() if kind == "constexpr"}
        self._function[tuple(grid)](*args, **constants)


def load(code: str, kernels: Kernels) -> Callable[[list[Any]], Any]:
    """Returns the function that a graph's code defines."""
    code = code.replace("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", "")
    code = code.replace("async_compile = AsyncCompile()", "")
    scope: dict[str, Any] = {"async_compile": kernels, "__name__": "code of a graph"}
    exec(code, scope)
    scope |= {"get_raw_stream": lambda index: 0, "empty_strided_cuda": empty_strided}
    call: Callable[[list[Any]], Any] = scope["call"]
    return call


def empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    """New memory on the host, in which nothing is of use."""
    return torch.empty_strided(size, stride, dtype=dtype).fill_(float("nan"))


def run_blocks(dtype: torch.dtype, kernels: Kernels) -> list[float]:
    """Runs a compiled block with kernels; returns how far it is off the plain one, in its eps."""

    def make(graph: torch.fx.GraphModule, _: Any) -> Any:
        call = load(cuda_code(graph), kernels)
        function = lambda args: call(list(args))  # noqa: E731
        function._boxed_call = True  # type: ignore[attr-defined]
        return function

    backend = aot_autograd(fw_compiler=make, decompositions=select_decomp_table())
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=backend)):
        compiled = _compiled()
    torch.manual_seed(0)
    block = Block(CONFIG, device="cpu", dtype=dtype).eval().requires_grad_(False)
    for norm in (block.norm1, block.norm2):
        norm.weight.add_(torch.randn_like(norm.weight) * 0.2)
    errors = []
    with torch.inference_mode():
        for lengths in ([12, 4, 4], [8], [4]):
            x_ND = torch.randn(sum(lengths), CONFIG.hidden_size).to(dtype)
            angle_NR = torch.rand(sum(lengths), CONFIG.head_dim // 2) * 50
            given = (x_ND, angle_NR.cos(), angle_NR.sin(), Segments.of(lengths, x_ND.device))
            found, exact = compiled(block, *given), _run_block(block, *given)
            error = (found - exact).double().norm(dim=1) / exact.double().norm(dim=1)
            errors.append(float(error.max()) / torch.finfo(dtype).eps)
    return errors


def compiled_kernel(made: list[dict[str, Any]], target: GPUTarget, tuner: Any) -> Any:
    """Compiles a kernel in each of its configurations; keeps what became of each."""
    for config in tuner.configs:
        source = ASTSource(
            tuner.fn,
            dict(tuner.triton_meta["signature"]),
            tuner.triton_meta["constants"] | config.kwargs,
            tuner.triton_meta["configs"][0],
        )
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        binary = triton.compile(source, target=target, options=options)
        made.append(
            {
                "kernel": tuner.fn.__name__,
                "config": config.kwargs,
                "bytes": len(binary.asm["cubin"]),
                "target": next(x for x in binary.asm["ptx"].splitlines() if ".target" in x),
                "shared": binary.metadata.shared,
            }
        )
    return SimpleNamespace(run=lambda *args, stream: None)


# The interpreter knows no library of CUDA's; Triton has these functions too.
_INTERPRETED = {"libdevice.": "tl."}
_SPOILED = _INTERPRETED | {"-1.0, tl.float32": "1.0, tl.float32"}


def _interpreted(**meta: Any) -> Callable[[Any], Interpreted]:
    return lambda function: Interpreted(function, meta["triton_meta"]["signature"])


def main(action: str, dtype_name: str, *capabilities: str) -> None:
    dtype = getattr(torch, dtype_name)
    if action != "compile":
        for heuristic in ("pointwise", "reduction", "persistent_reduction"):
            setattr(triton_heuristics, heuristic, _interpreted)
    for capability in capabilities:
        major, minor = map(int, capability.split("."))
        pretend_gpu((major, minor))
        torch._dynamo.reset()
        made: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            if action == "compile":
                target = GPUTarget("cuda", major * 10 + minor, 32)
                kernels = Kernels(Path(folder), partial(compiled_kernel, made, target))
                run_blocks(dtype, kernels)
                print(json.dumps({"made": made}))
            else:
                changes = _SPOILED if action == "spoil" else _INTERPRETED
                kernels = Kernels(Path(folder), lambda kernel: kernel, changes)
                errors = run_blocks(dtype, kernels)
                print(json.dumps({"errors": errors, "kernels": kernels.found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
