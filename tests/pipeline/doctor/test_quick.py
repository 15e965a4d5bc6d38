"""The quick half: what passes is kept beside the output, and what does not ends the start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder import Glm4vVisionModel, SelfCheckError
from pipeline.doctor import quick
from pipeline.doctor.quick import Kind, QuickResult, check_gpu, find, keep, kind_of, quick_check
from pipeline.doctor.steps import attention
from pipeline.encode import EncodeConfig

LENGTHS = (1, 5, 64)
RESULT = QuickResult(attention_error=1e-3, pack_error=2e-3, ceiling_flop_s=7e14)


def kind(model: Glm4vVisionModel) -> Kind:
    return replace(kind_of(model, "digest"), gpu="NVIDIA H200", driver="580.1")


def test_a_sound_encoder_passes(tiny_model: Glm4vVisionModel) -> None:
    found = quick_check(tiny_model, patches=200, lengths=LENGTHS)
    assert max(found.attention_error, found.pack_error) < 1e-4
    assert found.ceiling_flop_s == 0


def test_a_wrong_kernel_fails_the_self_check(
    tiny_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "attend", lambda query, key, value, segments: value)
    with pytest.raises(SelfCheckError, match=r"attention: varlen, float32: off by .* wrong at"):
        quick_check(tiny_model, patches=200, lengths=LENGTHS)


def test_a_pack_that_is_off_fails_the_self_check(
    tiny_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick.packs, "pack_error", lambda *given: float("nan"))
    with pytest.raises(SelfCheckError, match="a full pack against its segments alone"):
        quick_check(tiny_model, lengths=LENGTHS)


def test_a_result_is_found_again(tiny_model: Glm4vVisionModel, tmp_path: Path) -> None:
    keep(str(tmp_path), kind(tiny_model), RESULT)
    assert find(str(tmp_path), kind(tiny_model)) == RESULT
    (kept,) = (tmp_path / "_patchflow" / "devices").iterdir()
    assert json.loads(kept.read_text())["kind"]["gpu"] == "NVIDIA H200"


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H100"},
        {"driver": "580.2"},
        {"torch": "2.10"},
        {"tower": "another"},
        {"dtype": "float16"},
        {"kernel": "math"},
        {"compiled": True},
    ],
)
def test_another_kind_is_checked_anew(
    tiny_model: Glm4vVisionModel, tmp_path: Path, other: dict[str, Any]
) -> None:
    keep(str(tmp_path), kind(tiny_model), RESULT)
    assert find(str(tmp_path), replace(kind(tiny_model), **other)) is None


def test_the_first_result_stays(tiny_model: Glm4vVisionModel, tmp_path: Path) -> None:
    for error in (1.0, 2.0):
        keep(str(tmp_path), kind(tiny_model), replace(RESULT, pack_error=error))
    found = find(str(tmp_path), kind(tiny_model))
    assert found is not None and found.pack_error == 1.0


def test_a_damaged_result_is_none(tiny_model: Glm4vVisionModel, tmp_path: Path) -> None:
    keep(str(tmp_path), kind(tiny_model), RESULT)
    (kept,) = (tmp_path / "_patchflow" / "devices").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"0.002", b"0.001"))
    assert find(str(tmp_path), kind(tiny_model)) is None


def test_storage_that_fails_costs_a_check_and_no_run(
    tiny_model: Glm4vVisionModel, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    keep(str(tmp_path / "file"), kind(tiny_model), RESULT)
    assert find(str(tmp_path / "file"), kind(tiny_model)) is None


class _OnGpu:
    """A model whose weights say that they are on a GPU."""

    def __init__(self, model: Glm4vVisionModel) -> None:
        self.config = model.config
        self.downsample = type("Downsample", (), {"weight": torch.empty(0)})()
        self.downsample.weight = type("Weight", (), {"device": torch.device("cuda")})()


def test_a_gpu_is_checked_once_for_each_kind(
    tiny_model: Glm4vVisionModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encode_config: EncodeConfig,
) -> None:
    checked: list[int | None] = []

    def check(model: object, *, patches: int | None = None) -> QuickResult:
        checked.append(patches)
        return RESULT

    monkeypatch.setattr(quick, "quick_check", check)
    monkeypatch.setattr(quick, "kind_of", lambda model, tower: kind(tiny_model))
    config = replace(encode_config, output=str(tmp_path), token_budget=100)
    on_gpu: Any = _OnGpu(tiny_model)
    assert [check_gpu(on_gpu, config), check_gpu(on_gpu, config)] == [RESULT, RESULT]
    assert checked == [400]
    assert check_gpu(tiny_model, config) is None
