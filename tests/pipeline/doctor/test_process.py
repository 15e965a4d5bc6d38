"""A step that fails in any way is a finding of that step."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipeline.doctor import process
from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options
from pipeline.doctor.process import Step, run_step
from tests.pipeline.doctor.steps_that_fail import FINDING

MODULE = "tests.pipeline.doctor.steps_that_fail"


def run(name: str, *, deadline_s: float = 60.0, **options: Any) -> list[Finding]:
    step = Step(name="tried", target=f"{MODULE}:{name}", deadline_s=deadline_s, hint="look")
    given: dict[str, Any] = {"stop": threading.Event(), "say": lambda line: None}
    given |= {"end_s": time.monotonic() + 60} | options
    return run_step(step, Options(encoder="tiny"), **given)


def test_findings_come_back_whatever_libraries_print() -> None:
    first, second = run("well", device="GPU 1", env={"SEEN": "yes"})
    assert (first.figure, first.device) == ("tiny", "GPU 1")
    assert (second.result, second.figure) == ("warning", "yes")


@pytest.mark.parametrize(
    ("name", "figure", "advice"),
    [
        ("raises", "its process ended early: exit code 1", "RuntimeError: the device is gone"),
        ("crashes", "its process ended early: SIGSEGV", "it said nothing"),
        ("exits_quietly", "its process ended early: exit code 0", "it said nothing"),
        ("rubbish", 'its process wrote no finding: \'{"step": "x"}\'', "this is a bug"),
        ("missing", "its process ended early: exit code 1", "AttributeError: module"),
    ],
)
def test_a_failure_is_one_more_finding(name: str, figure: str, advice: str) -> None:
    *before, last = run(name)
    assert before == ([FINDING] if name != "missing" else [])
    assert (last.step, last.result, last.figure) == ("tried", "broken", figure)
    assert last.advice.startswith(advice)


def test_a_hang_is_a_finding_and_its_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATIENCE_S", 1.0)
    said: list[str] = []
    first, last = run("hangs", deadline_s=3.0, say=said.append)
    assert first == FINDING
    assert last == Finding(
        step="tried", result="broken", figure="did not end within 3 s", advice="look"
    )
    assert said[0] == "tried: running for 1 s"


def test_a_step_is_stopped_at_once() -> None:
    stop = threading.Event()
    stop.set()
    (last,) = run("hangs", stop=stop)
    assert last.result == "broken"


def test_a_step_is_left_out_where_no_time_is_left() -> None:
    (last,) = run("well", end_s=time.monotonic())
    assert (last.result, last.figure) == ("warning", "left out: the time was over")


@pytest.mark.parametrize("line", ["", "[]", '{"step": 1}', "null", '{"a": 1}'])
def test_what_is_no_finding_is_refused(line: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Finding.from_json(line)


def test_a_finding_survives_its_json() -> None:
    finding = Finding(step="a", result="ok", figure="é", device="GPU 0", values={"x": 1.5})
    assert Finding.from_json(finding.to_json()) == finding
