"""The CUDA path on a simulated GPU: devices, dtypes, and no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from encoder import (
    PRESETS,
    AttentionKernel,
    EncoderOutput,
    Glm4vVisionModel,
    PackRunner,
    SelfCheckError,
    ceiling_flop_s,
    check_encoder,
)
from encoder.reference import attention
from tests.support.cuda_patches import HostWaitsError
from tests.support.simulated_cuda import (
    MixedDevicesError,
    Operation,
    SimulatedCuda,
    simulate,
    varlen,
)
from tests.support.simulated_gpu import Gpu
from tests.support.towers import SMALL, cast_model, random_model

# As wide as the default tower, so that every kernel sees the strides that it will see.
WIDE = replace(PRESETS["large"], depth=2)
PRODUCTS = ("linear", "mm", "matmul", "conv", "einsum", "attention", "attn")
STILL, CLIP = 588, 1176
# Of the learned position embeddings that a patch's is made of: four along each side.
POSITION_WEIGHTS = 16
Grids = list[tuple[int, int, int]]


class Pack(NamedTuple):
    """Grids of each kind of patches, by the kind's values a patch."""

    kinds: dict[int, Grids]

    @property
    def grids(self) -> Grids:
        return [grid for grids in self.kinds.values() for grid in grids]

    @property
    def patches(self) -> int:
        return sum(t * h * w for t, h, w in self.grids)


PACKS = {
    "stills": Pack({STILL: [(1, 40, 26), (1, 16, 16), (1, 16, 16), (1, 4, 6)]}),
    "clips": Pack({CLIP: [(3, 8, 8), (2, 8, 6)]}),
    "mixed": Pack({STILL: [(1, 120, 90), (1, 16, 16)], CLIP: [(3, 8, 8)]}),
    "floats of stills": Pack({STILL: [(1, 8, 8)]}),
    "one token": Pack({STILL: [(1, 2, 2)]}),
    "one token of a clip": Pack({CLIP: [(1, 2, 2)]}),
}
ways = pytest.mark.parametrize(
    ("dtype", "capability", "kernel", "attends"),
    [
        (torch.bfloat16, (8, 0), "varlen", "torch_attn._varlen_attn.default"),
        (torch.float16, (9, 0), "varlen", "torch_attn._varlen_attn.default"),
        (torch.float16, (7, 5), "varlen", "aten.scaled_dot_product_attention.default"),
        (torch.float32, (9, 0), "varlen", "aten.scaled_dot_product_attention.default"),
        (torch.bfloat16, (9, 0), "sdpa", "aten.scaled_dot_product_attention.default"),
        (torch.bfloat16, (9, 0), "math", "aten.scaled_dot_product_attention.default"),
    ],
    ids=["bfloat16 A100", "float16 H100", "float16 T4", "float32 H100", "sdpa", "math"],
)


def without_values(
    patch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int] = (9, 0)
) -> tuple[SimulatedCuda, Glm4vVisionModel]:
    """A wide tower of which nothing is computed but shapes, dtypes and devices."""
    cuda = simulate(Gpu(keeps_values=False), patch, capability=capability)
    return cuda, cuda.put(Glm4vVisionModel(WIDE, device="meta", dtype=dtype))


def features(
    cuda: SimulatedCuda, model: Glm4vVisionModel, pack: Pack, dtype: torch.dtype = torch.uint8
) -> EncoderOutput:
    with cuda, torch.inference_mode():
        kinds = [
            torch.empty(sum(t * h * w for t, h, w in grids), values, dtype=dtype, device="cuda")
            for values, grids in pack.kinds.items()
        ]
        cuda.operations.clear()
        return model.forward_features(kinds if len(kinds) > 1 else kinds[0], pack.grids)


def attention_of(operations: Sequence[Operation]) -> set[str]:
    return {o.name for o in operations if "attention" in o.name or "attn" in o.name}


def assert_dtypes(
    operations: Sequence[Operation], pack: Pack, dtype: torch.dtype, attends: str
) -> None:
    """Products are of the model's dtype, but for the patches', which are of float32."""
    merged = WIDE.spatial_merge_size**2
    rows = {pack.patches, *(sum(t * h * w for t, h, w in own) for own in pack.kinds.values())}
    rows |= {pack.patches // merged}
    products = [o for o in operations if any(sign in o.name for sign in PRODUCTS)]
    embedding, others = products[: len(pack.kinds)], products[len(pack.kinds) :]
    assert [{*o.dtypes} for o in embedding] == [{torch.float32}] * len(pack.kinds)
    for operation in others:
        # Offsets are of int32.
        assert {*operation.dtypes} - {torch.int32} == {dtype}, operation
        assert operation.results[0][1] == dtype, operation
    assert attention_of(others) == {attends}
    # Queries, keys and values in one, attention's projection, three of the MLP, in each block.
    weighted = [o for o in others if o.name not in attends]
    assert len(weighted) == 5 * WIDE.depth + 1 + 4
    for operation in operations:
        dtypes = {*operation.dtypes, *(found for _, found in operation.results)}
        if torch.float64 in dtypes:  # Weights may be folded in it, the patches' and the positions'.
            assert operation not in products, operation
            for shape, _ in operation.results:
                assert shape[0] not in rows or shape[1:] == (POSITION_WEIGHTS,), operation


@ways
@pytest.mark.parametrize("name", PACKS)
def test_the_forward_pass_stays_on_the_device_in_its_dtype(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kernel: AttentionKernel,
    attends: str,
) -> None:
    pack = PACKS[name]
    cuda, model = without_values(monkeypatch, dtype, capability)
    model.use_attention(kernel)
    out = features(cuda, model, pack, torch.float32 if "floats" in name else torch.uint8)
    for tokens in out:
        assert tokens.shape == (pack.patches // 4, WIDE.out_hidden_size)
        assert (tokens.device, tokens.dtype) == (torch.device("cuda", 0), dtype)
    assert_dtypes(cuda.operations, pack, dtype, attends)


@ways
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("level", ["merged", "last_hidden_state"])
def test_a_pack_is_started_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
    pool: Any,
    level: Any,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kernel: AttentionKernel,
    attends: str,
) -> None:
    cuda, model = without_values(monkeypatch, dtype, capability)
    model.use_attention(kernel)
    sizes = [(40, 26), (16, 16), (16, 16), (8, 8), (8, 8), (2, 2)]
    levels = [
        np.zeros((h * w, STILL if n < 3 else CLIP), np.uint8) for n, (h, w) in enumerate(sizes)
    ]
    with cuda:
        runner = PackRunner(model, device="cuda", pool=pool, features=level, keep_tokens=True)
        ((part, results),) = runner.start(levels, sizes)
    assert part == slice(0, 6) and results is not None
    assert not [name for name in cuda.gpu.calls if "synchronize" in name or "query" in name]
    results.wait()
    tokens = sum(h * w for h, w in sizes) // 4
    assert (results.vectors.shape, results.vectors.dtype) == ((6, 4096), torch.float32)
    assert (results.tokens.shape, results.tokens.dtype) == ((tokens, 4096), torch.float16)
    assert (results.finite.shape, results.finite.dtype) == ((tokens,), torch.bool)
    assert {results.vectors.device, results.tokens.device} == {torch.device("cpu")}
    assert results.seconds > 0
    kinds = {
        STILL: [(1, h, w) for h, w in sizes[:3]],
        CLIP: [(1, h, w) for h, w in sizes[3:]],
    }
    assert_dtypes(cuda.operations, Pack(kinds), dtype, attends)


def by_cpu_round_trip(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to("cuda")


def by_pageable_memory(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(x.shape[1], device="cpu").to("cuda", non_blocking=True)


def by_pinned_memory_but_waiting(x: torch.Tensor) -> torch.Tensor:
    return x + torch.ones(x.shape[1], device="cpu").pin_memory().to("cuda")


def by_copy_into_the_host(x: torch.Tensor) -> torch.Tensor:
    torch.empty(x.shape, device="cpu").copy_(x, non_blocking=True)
    return x


def by_branch(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


FAULTS: dict[str, tuple[type[Exception], Callable[[torch.Tensor], torch.Tensor]]] = {
    "item": (HostWaitsError, lambda x: x * x.sum().item()),
    "tolist": (HostWaitsError, lambda x: x * x[0].tolist()[0]),
    "float": (HostWaitsError, lambda x: x * float(x.sum())),
    "int": (HostWaitsError, lambda x: x[: int(x.sum())]),
    "branch": (HostWaitsError, by_branch),
    "nonzero": (HostWaitsError, lambda x: x.nonzero()),
    "mask": (HostWaitsError, lambda x: x[x > 0]),
    "unique": (HostWaitsError, lambda x: x.unique()),
    "repeats": (HostWaitsError, lambda x: x.repeat_interleave(x[:, 0].long(), dim=0)),
    "equal": (HostWaitsError, lambda x: x * torch.equal(x, x)),
    "round trip": (HostWaitsError, by_cpu_round_trip),
    "pageable": (HostWaitsError, by_pageable_memory),
    "pinned": (HostWaitsError, by_pinned_memory_but_waiting),
    "copy": (HostWaitsError, by_copy_into_the_host),
    "cpu arange": (MixedDevicesError, lambda x: x + torch.arange(x.shape[1], device="cpu")),
    "cpu scalar": (MixedDevicesError, lambda x: x + torch.tensor(1.0)),
    "cpu index": (MixedDevicesError, lambda x: x[torch.arange(len(x), device="cpu")]),
    "back too early": (MixedDevicesError, lambda x: x + x.to("cpu", non_blocking=True)),
    "float64": (AssertionError, lambda x: x.double().to(x.dtype)),
    "float32 product": (
        AssertionError,
        lambda x: (x.float() @ x.new_ones(x.shape[1], x.shape[1], dtype=torch.float32)).to(x.dtype),
    ),
    "float32 results": (AssertionError, lambda x: x.float()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_code_that_waits_or_mixes_devices_or_dtypes_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected, fault = FAULTS[name]
    cuda, model = without_values(monkeypatch, torch.bfloat16)

    class Faulty(type(model.post_layernorm)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return fault(super().forward(x))

    model.post_layernorm.__class__ = Faulty
    pack = PACKS["stills"]
    with pytest.raises(expected):
        features(cuda, model, pack)
        assert_dtypes(cuda.operations, pack, torch.bfloat16, "torch_attn._varlen_attn.default")


@pytest.fixture(scope="module")
def plain_model() -> Glm4vVisionModel:
    """With heads of 16 values, which the varlen kernel takes."""
    return random_model(SMALL)


@pytest.fixture
def _less_to_attend_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoder.self_check._LONG_ON_GPU", 1400)


@pytest.mark.usefixtures("_less_to_attend_to")
@ways
def test_the_self_check_passes_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
    plain_model: Glm4vVisionModel,
    dtype: torch.dtype,
    capability: tuple[int, int],
    kernel: AttentionKernel,
    attends: str,
) -> None:
    cuda = simulate(Gpu(), monkeypatch, capability=capability, may_wait=True)
    model = cuda.put(cast_model(plain_model, dtype))
    model.use_attention(kernel)
    with cuda:
        check_encoder(model)
    assert attention_of(cuda.operations) == {attends}


def spread(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    """A kernel that sees no segments."""
    return (attention(query.float(), key.float(), value.float()).to(query.dtype),)


def unwritten(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> Any:
    """A kernel that leaves the last row as it was."""
    (out,) = varlen(query, key, value, *rest)
    out[-1] = float("nan")
    return (out,)


@pytest.mark.usefixtures("_less_to_attend_to")
@pytest.mark.parametrize("kernel", [spread, unwritten])
def test_the_self_check_finds_a_kernel_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, plain_model: Glm4vVisionModel, kernel: Any
) -> None:
    cuda = simulate(Gpu(), monkeypatch, may_wait=True)
    cuda.varlen = kernel
    model = cuda.put(cast_model(plain_model, torch.bfloat16))
    with cuda, pytest.raises(SelfCheckError, match="attention results are off"):
        check_encoder(model)


def test_what_a_device_could_do_is_measured_in_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = simulate(Gpu(keeps_values=False), monkeypatch)
    with cuda:
        assert ceiling_flop_s("cuda", torch.bfloat16) > 0
    products = [o for o in cuda.operations if "mm" in o.name]
    assert len(products) >= 2
    assert {dtype for o in products for dtype in o.dtypes} == {torch.bfloat16}


def test_a_device_without_room_for_the_measurement_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with simulate(Gpu(keeps_values=False, memory=2**27), monkeypatch):
        assert ceiling_flop_s("cuda", torch.bfloat16) == 0
