"""Packs against their segments alone and in flight; encoders and runners that get them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.doctor.steps.packs as step
from encoder import Glm4vVisionModel, PackResults, PackRunner
from pipeline.doctor.options import Options
from pipeline.doctor.steps.packs import flight_error, judge, pack_error, stills, web_mix
from pipeline.doctor.steps.tower import make_tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Glm4vVisionModel:
    return make_tower(Options(device="cpu"), CPU)


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, patches in {"PACK_PATCHES": 400, "_MEDIAN": 40, "_LARGEST": 100}.items():
        monkeypatch.setitem(getattr(step, name), "cpu", patches)


def test_packs_here_are_right(model: Glm4vVisionModel) -> None:
    for error in (pack_error(model, CPU), flight_error(model, CPU)):
        assert judge("pack", error, model, "a pack").result == "ok"


def test_a_still_that_depends_on_its_pack_is_broken(
    model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackRunner.start

    def mixes(self: PackRunner, levels: Sequence[Any], sizes: Any) -> list[Any]:
        last = np.roll(levels[-1], 1) if len(levels) > 1 else levels[-1]
        return right(self, [*levels[:-1], last], sizes)

    monkeypatch.setattr(PackRunner, "start", mixes)
    assert judge("pack", pack_error(model, CPU), model, "a pack").result == "broken"


class _ReadsLate:
    """Results that are computed when they are waited for, from the levels as they are then."""

    def __init__(self, results: Any) -> None:
        self._results = results
        self.vectors = torch.empty(0)

    def wait(self) -> None:
        (_, found), *_ = self._results()
        assert isinstance(found, PackResults)
        self.vectors = found.vectors


def test_levels_that_are_read_after_start_are_broken(
    model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PackRunner.start

    def late(self: PackRunner, levels: Any, sizes: Any) -> list[Any]:
        return [(slice(0, len(levels)), _ReadsLate(lambda: right(self, levels, sizes)))]

    monkeypatch.setattr(PackRunner, "start", late)
    assert judge("in flight", flight_error(model, CPU), model, "two").result == "broken"


def test_the_error_of_nothing_but_nan_is_broken(model: Glm4vVisionModel) -> None:
    found = judge("pack", float("nan"), model, "a pack")
    assert (found.result, found.values["error"]) == ("broken", None)


def test_a_web_mix_fills_its_pack(model: Glm4vVisionModel) -> None:
    levels, sizes = stills(model.config, web_mix(CPU))
    assert [len(own) for own in levels] == [height * width for height, width in sizes]
    assert 380 <= sum(map(len, levels)) <= 404
