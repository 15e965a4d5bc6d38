"""Attention that is right, and a wrong kernel in its place."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import pipeline.doctor.steps.attention as step
from encoder import PRESETS
from encoder.attention import Segments, attend
from pipeline.doctor.steps.attention import attention_errors, judge

CPU = torch.device("cpu")
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments], torch.Tensor]


def errors(dtype: torch.dtype = torch.float32) -> dict[int, float | None]:
    return attention_errors(PRESETS["tiny"], CPU, dtype, "sdpa", (1, 5, 64, 300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_here_is_within_its_bound(dtype: torch.dtype) -> None:
    found = judge(errors(dtype), dtype, "sdpa")
    assert found.result == "ok", found
    assert 0 < float(found.values["error_at_64"] or 0) < 0.02


def sees_its_neighbour(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    whole = Segments.of([sum(segments.lengths)], query.device)
    return attend(query, key, value, whole)


def leaves_the_end_unwritten(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    out = torch.empty_like(query).fill_(math.nan)  # As poisoned memory is.
    out[:-1] = attend(query, key, value, segments)[:-1]
    return out


def scales_twice(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
) -> torch.Tensor:
    return attend(query * query.shape[-1] ** -0.5, key, value, segments)


@pytest.mark.parametrize("wrong", [sees_its_neighbour, leaves_the_end_unwritten, scales_twice])
def test_a_wrong_kernel_is_broken(monkeypatch: pytest.MonkeyPatch, wrong: Attend) -> None:
    monkeypatch.setattr(step, "attend", wrong)
    found = judge(errors(), torch.float32, "varlen")
    assert found.result == "broken"
    assert "wrong at" in found.figure and "64" in found.figure


def test_lengths_without_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        if segments.lengths[0] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attend(query, key, value, segments)

    monkeypatch.setattr(step, "attend", short)
    found = judge(errors(), torch.float32, "math")
    assert found.result == "ok"
    assert "no memory from 300 patches" in found.figure


def test_any_other_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(step, "attend", fails)
    with pytest.raises(RuntimeError, match="illegal"):
        errors()
