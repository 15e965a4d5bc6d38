"""The driver and GPUs against torch, by hand-made versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.doctor.options import Options
from pipeline.doctor.steps.driver import check, judge_capability, judge_count, judge_driver


def judged(**given: Any) -> tuple[str, str]:
    defaults = {"torch_cuda": "13.0", "supported": 13000, "driver": "580.1", "present": 1}
    found = judge_driver(**defaults | {"wanted": False} | given)
    return found.result, found.advice


def test_a_driver_for_torchs_cuda_or_a_later_one_is_well() -> None:
    assert judged() == ("ok", "")
    assert judged(torch_cuda="12.8") == ("ok", "")


def test_a_driver_older_than_torchs_cuda_is_broken() -> None:
    result, advice = judged(supported=12080)
    assert (result, "install torch for CUDA 12" in advice) == ("broken", True)


def test_an_older_minor_version_runs_with_a_warning() -> None:
    assert judged(torch_cuda="12.8", supported=12040)[0] == "warning"


def test_a_cpu_build_of_torch_on_a_machine_with_a_gpu_is_broken() -> None:
    assert judged(torch_cuda=None)[0] == "broken"


def test_a_machine_without_a_gpu_is_well_unless_one_is_wanted() -> None:
    assert judged(supported=None, present=0)[0] == "ok"
    assert judged(supported=None, present=0, wanted=True)[0] == "broken"
    assert judged(supported=None, present=2)[0] == "broken"


@pytest.mark.parametrize(
    ("count", "present", "ray", "result"),
    [
        (2, 2, None, "ok"),
        (2, 2, 2.0, "ok"),
        (0, 0, 0.0, "ok"),
        (1, 2, None, "warning"),
        (2, 2, 1.0, "warning"),
        (1, 1, 2.0, "broken"),
        (0, 2, None, "broken"),
    ],
)
def test_gpus_are_counted_three_ways(
    count: int, present: int, ray: float | None, result: str
) -> None:
    assert judge_count(count, present=present, ray=ray).result == result


@pytest.mark.parametrize(
    ("capability", "architectures", "result"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok"),
        ((8, 9), ["sm_80", "sm_90"], "ok"),  # Kernels run on later minor versions.
        ((8, 0), ["sm_86"], "broken"),
        ((9, 0), ["sm_90a"], "ok"),
        ((12, 0), ["sm_100", "sm_120"], "ok"),
        ((12, 0), ["sm_90", "compute_90"], "warning"),
        ((7, 0), ["sm_80", "compute_90"], "broken"),
        ((10, 0), ["sm_90a"], "broken"),
    ],
)
def test_capabilities_against_architectures(
    capability: tuple[int, int], architectures: list[str], result: str
) -> None:
    assert judge_capability(capability, architectures)[0] == result


@pytest.mark.skipif(torch.cuda.is_available(), reason="says other things there")
def test_this_machine_has_no_gpu() -> None:
    assert [found.result for found in check(Options(ray_gpus=0.0))] == ["ok", "ok"]
    driver, _ = check(Options(device="cuda"))
    assert driver.result == "broken"
    driver, _ = check(Options(device="cuda", ray_gpus=0.0))
    assert driver.result == "ok"
