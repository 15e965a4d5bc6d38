"""Memory that runs out: packs are halved, and nothing but what never fits is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoder import EncoderOutput, Glm4vVisionModel
from pipeline.errors import DeviceError
from tests.support.encoding import GRIDS, Changed, Grid, alone, stage, vectors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("most_segments", [1, 2, 3, 7])
def test_a_pack_that_does_not_fit_is_halved_and_loses_nothing(
    tiny_model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    most_segments: int,
) -> None:
    fake = changed(most_segments=most_segments)
    out = stage()(preprocessed(GRIDS))
    expected = alone(tiny_model, {})
    assert sum(map(len, fake.packs)) == 8
    assert max(map(len, fake.packs)) <= most_segments
    assert out["error_code"].null_count == len(GRIDS)
    np.testing.assert_allclose(vectors(out), expected, atol=1e-5 * np.abs(expected).max())


def test_a_segment_that_never_fits_fails_its_item_alone(
    tiny_model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
) -> None:
    def too_large(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if (1, 8, 8) in grids or (1, 2, 4) in grids:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens

    changed(change=too_large)
    out = stage()(preprocessed(GRIDS))
    lost = [2, 4]  # The clip, whose slices are 2 by 4, and the largest still.
    errors = out.select(["stage", "error_code", "error_message", "attempts"]).to_pylist()
    for n, error in enumerate(errors):
        assert list(error.values()) == (
            ["encode", "encode_failed", "one segment does not fit in memory", 1]
            if n in lost
            else [None] * 4
        )
    kept = [n for n in range(len(GRIDS)) if n not in lost]
    expected = alone(tiny_model, {})[kept]
    np.testing.assert_allclose(vectors(out)[kept], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 8 bytes.",
    ],
)
def test_memory_that_runs_out_outside_of_pytorchs_allocator_halves_too(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], message: str
) -> None:
    def too_large(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if len(grids) > 2:
            raise RuntimeError(message)
        return tokens

    rows = preprocessed(GRIDS)
    whole = stage()(rows)
    changed(change=too_large)
    out = stage()(rows)
    assert out["error_code"].null_count == len(GRIDS)
    scale = np.abs(vectors(whole)).max()
    np.testing.assert_allclose(vectors(out), vectors(whole), atol=1e-5 * scale)


class Uncopied(torch.Tensor):
    """Vectors on a device, of which no more than two can be copied to the host at once."""

    def to(self, device: str, **options: Any) -> torch.Tensor:
        if device == "cpu" and len(self) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.as_subclass(torch.Tensor)


def test_memory_that_runs_out_while_copying_back_halves_too(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
) -> None:
    rows = preprocessed(GRIDS)
    whole = stage()(rows)
    fake = changed(change=lambda tokens, grids: tokens.as_subclass(Uncopied))
    out = stage()(rows)
    assert out["error_code"].null_count == len(GRIDS)
    scale = np.abs(vectors(whole)).max()
    np.testing.assert_allclose(vectors(out), vectors(whole), atol=1e-5 * scale)
    assert [len(pack) for pack in fake.packs] == [8, 4, 2, 2, 4, 2, 2]


def test_a_device_without_memory_for_a_blank_image_is_no_items_fault(
    preprocessed: Callable[..., pa.Table],
    tiny_model: Glm4vVisionModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Glm4vVisionModel, patches: torch.Tensor, grids: list[Grid]) -> EncoderOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Glm4vVisionModel, "forward_features", full)
    with pytest.raises(DeviceError, match="no memory for a blank image of 2 x 2 patches"):
        stage()(preprocessed(GRIDS))
