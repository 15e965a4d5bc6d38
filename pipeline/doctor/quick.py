"""The doctor's quick half, which an encoder's actor does before its first pack.

It takes seconds, so its result is kept beside the output: actors and later runs with the same GPU
model, driver, torch, tower, dtype and kernels find it there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch

from encoder import Glm4vVisionModel, SelfCheckError, ceiling_flop_s
from pipeline import layout
from pipeline.doctor.finding import Finding
from pipeline.doctor.steps import attention, packs
from pipeline.doctor.steps.driver import driver_version
from pipeline.doctor.steps.tower import describe_dtype
from pipeline.errors import StorageError
from pipeline.location import digest, join
from pipeline.sealed import seal, unseal
from pipeline.storage import storage_for

if TYPE_CHECKING:
    from pipeline.encode import EncodeConfig


class DeviceCheckError(SelfCheckError):
    """A device does not compute what it should in the quick check; the line says by how much."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a result holds for.

    Attributes:
        gpu: The GPU's model; `cpu` on a CPU.
        driver: Its driver's version.
        torch: Of the package.
        tower: The encoder's digest.
        dtype: Of the matrix products.
        kernel: Which kernels attention uses.
        compiled: Whether the blocks are.
    """

    gpu: str
    driver: str | None
    torch: str
    tower: str
    dtype: str
    kernel: str
    compiled: bool

    @property
    def digest(self) -> str:
        """Names the result."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True, kw_only=True)
class QuickResult:
    """What a quick check that passed has measured.

    Attributes:
        attention_error: The largest, relative to a query's norm.
        pack_error: The largest difference of a vector in a full pack and alone.
        ceiling_flop_s: Operations a second of matrix products; 0 on a CPU.
    """

    attention_error: float
    pack_error: float
    ceiling_flop_s: float


def check_gpu(model: Glm4vVisionModel, config: EncodeConfig) -> QuickResult | None:
    """Checks the GPU that a model is on, unless the output says that its like was; None on a CPU.

    Raises:
        DeviceCheckError: A result is off by more than rounding explains.
        RuntimeError: The device fails.
    """
    device = model.downsample.weight.device
    if device.type != "cuda":
        return None
    kind = kind_of(model, config.tower)
    known = find(config.output, kind)
    if known is not None:
        return known
    patches = config.token_budget * model.config.spatial_merge_size**2
    found = quick_check(model, patches=patches)
    keep(config.output, kind, found)
    return found


def kind_of(model: Glm4vVisionModel, tower: str) -> Kind:
    """What a result for this model, on its device, would hold for."""
    weight = model.downsample.weight
    return Kind(
        gpu=torch.cuda.get_device_name() if weight.device.type == "cuda" else "cpu",
        driver=driver_version(),
        torch=torch.__version__,
        tower=tower,
        dtype=describe_dtype(weight.dtype),
        kernel=model.attention,
        compiled=model.is_compiled,
    )


def quick_check(
    model: Glm4vVisionModel,
    *,
    patches: int | None = None,
    lengths: tuple[int, ...] = attention.LENGTHS,
) -> QuickResult:
    """Checks attention with the model's kernels, and a full pack against its segments alone.

    Args:
        model: Loaded, on its device.
        patches: Of the full pack; None takes a run's default.
        lengths: Patches of the segments that attention is checked at.

    Raises:
        DeviceCheckError: A result is off by more than rounding explains.
    """
    weight, kernel = model.downsample.weight, model.attention
    errors = attention.attention_errors(model.config, weight.device, weight.dtype, kernel, lengths)
    _hold(attention.judge(errors, weight.dtype, kernel))
    pack_error = packs.pack_error(model, weight.device, patches)
    _hold(packs.judge("pack", pack_error, model, "a full pack against its segments alone"))
    on: Literal["cpu", "cuda"] = "cuda" if weight.device.type == "cuda" else "cpu"
    return QuickResult(
        attention_error=max(error for error in errors.values() if error is not None),
        pack_error=pack_error,
        ceiling_flop_s=ceiling_flop_s(on, weight.dtype),
    )


def find(output: str | None, kind: Kind) -> QuickResult | None:
    """The result that is kept beside an output; None where there is none that can be read."""
    if output is None:
        return None
    place = join(output, layout.device(kind.digest))
    with suppress(FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
        kept = unseal(storage_for(place).read(place))
        if kept["kind"] == asdict(kind):
            names = [field.name for field in fields(QuickResult)]
            return QuickResult(**{name: float(kept["result"][name]) for name in names})
    return None


def keep(output: str | None, kind: Kind, result: QuickResult) -> None:
    """Keeps a result beside an output; where another actor was faster, its own stays."""
    if output is None:
        return
    place = join(output, layout.device(kind.digest))
    data = seal({"kind": asdict(kind), "result": asdict(result)})
    with suppress(StorageError):  # It would be measured again.
        storage_for(place).create(place, data)


def _hold(finding: Finding) -> None:
    if finding.result == "broken":
        raise DeviceCheckError(f"{finding.step}: {finding.figure}")
