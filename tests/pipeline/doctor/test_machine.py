"""Which steps a machine gets, on which devices; and an examination that is broken off."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.doctor import machine
from pipeline.doctor.finding import Finding, Result
from pipeline.doctor.machine import examine
from pipeline.doctor.options import Options
from pipeline.doctor.process import Step
from pipeline.doctor.steps import recovery

Call = tuple[str, str, str | None]


def steps_run(
    monkeypatch: pytest.MonkeyPatch, gpus: dict[str, Result], options: Options
) -> list[Call]:
    calls: list[Call] = []

    def run_step(
        step: Step, options: Options, *, device: str, env: Mapping[str, str], **others: Any
    ) -> list[Finding]:
        calls.append((step.name, device, env.get("CUDA_VISIBLE_DEVICES")))
        if step.name != "driver":
            return [Finding(step=step.name, result="ok", figure="")]
        return [
            Finding(step="GPU", result=result, figure="", device=name)
            for name, result in gpus.items()
        ]

    monkeypatch.setattr(machine, "run_step", run_step)
    list(examine(options))
    return calls


def test_each_gpu_is_examined_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    gpus: dict[str, Result] = {"GPU 0": "ok", "GPU 1": "broken", "GPU 2": "warning"}
    calls = steps_run(monkeypatch, gpus, Options())
    names = ("attention", "packs", "out of memory", "device error", "speed")
    expected = {(name, *gpu) for name in names for gpu in (("GPU 0", "2"), ("GPU 2", "7"))}
    assert {call for call in calls if call[1]} == expected
    # Nothing else is on the GPUs while their speed is measured.
    assert {name for name, _, _ in calls[-3:]} == {"speed", "photos"}


def test_gpus_are_numbered_where_all_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    calls = steps_run(monkeypatch, {"GPU 1": "ok"}, Options())
    assert ("packs", "GPU 1", "1") in calls


def test_without_gpus_the_cpu_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = steps_run(monkeypatch, {}, Options(inputs=("/in",), output="/out"))
    assert {"input", "output"} <= {name for name, _, _ in calls}
    lane = [call for call in calls if call[1] == "CPU"]
    assert lane == [(name, "CPU", None) for name in ("attention", "packs", "speed")]
    calls = steps_run(monkeypatch, {}, Options(device="cuda"))
    assert not {name for name, _, _ in calls} & {"input", "output", "speed", "photos"}


def test_an_examination_that_is_broken_off_ends_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = threading.Event()

    def run_step(
        step: Step, options: Options, *, stop: threading.Event, **others: Any
    ) -> list[Any]:
        if step.name != "packages" and stop.wait(60):
            stopped.set()
        return [Finding(step=step.name, result="ok", figure="")]

    monkeypatch.setattr(machine, "run_step", run_step)
    start, examining = time.monotonic(), examine(Options())
    next(examining)
    examining.close()  # type: ignore[attr-defined]
    assert stopped.is_set()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("failed", "worked", "result"),
    [
        ("sticky", "sum 1000", "ok"),
        ("RuntimeError", "sum 1000", "warning"),
        ("sticky", "no end within 20 s", "broken"),
    ],
)
def test_a_device_error_in_one_process_must_not_harm_the_next(
    monkeypatch: pytest.MonkeyPatch, failed: str, worked: str, result: str
) -> None:
    answers = iter((failed, worked))
    monkeypatch.setattr(recovery, "_child", lambda code: next(answers))
    assert next(recovery.sticky(Options())).result == result
