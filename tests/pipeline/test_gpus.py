"""The GPUs of machines that have none: torch and its driver's files are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import GetTimeoutError, RayTaskError

from pipeline import cluster, gpus
from pipeline.config import RunConfig
from pipeline.errors import ClusterError, DeviceError, UsageError
from pipeline.gpus import compare_with_driver, default_dtype


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine by itself, and its folder of device files: no driver's among them."""
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "PATCHFLOW_TEST_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "_DEVICE_FILES", tmp_path)
    return tmp_path


@pytest.fixture
def has_gpus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the machine GPUs of NVIDIA's, some of which torch sees, with these capabilities."""

    def install(present: int, *capabilities: tuple[int, int], cuda: str | None = "13.0") -> None:
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{n}" for n in range(present))):
            (machine / name).touch()
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)

    return install


def chosen(device: Any = "auto", **options: Any) -> str:
    return cluster.choose_device(RunConfig(output="out", device=device, **options))


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ([(8, 0)], "bfloat16"),
        ([(9, 0), (12, 0)], "bfloat16"),
        ([(7, 5)], "float16"),
        ([(7, 0)], "float16"),
        ([(9, 0), (7, 5)], "float16"),
    ],
)
def test_the_dtype_of_a_new_output_is_what_the_least_gpu_is_fast_at(
    has_gpus: Any, capabilities: list[tuple[int, int]], dtype: str
) -> None:
    has_gpus(len(capabilities), *capabilities)
    assert default_dtype("cuda") == dtype
    assert default_dtype("cpu") == "float32"


def test_a_machine_without_a_driver_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen() == "cpu"
    assert capsys.readouterr().err == ""
    with pytest.raises(
        UsageError, match=r"^--device cuda: there is no CUDA GPU here; .*--device c"
    ):
        chosen("cuda")


def test_a_machine_whose_gpus_torch_sees_says_nothing(
    has_gpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    has_gpus(2, (9, 0), (9, 0))
    assert (chosen(), chosen("cuda"), chosen("cpu")) == ("cuda", "cuda", "cpu")
    assert capsys.readouterr().err == ""


def test_a_build_without_cuda_on_a_machine_with_a_gpu_is_no_silent_cpu_run(
    has_gpus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    has_gpus(1, cuda=None)
    assert chosen() == "cpu"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchflow: this machine has an NVIDIA driver, but torch ")
    assert "install a CUDA build" in line and line.endswith("; this run computes on the CPU")
    with pytest.raises(
        UsageError, match=r"^--device cuda: this machine has .*install a CUDA build"
    ):
        chosen("cuda")
    assert chosen("cpu") == "cpu"
    assert capsys.readouterr().err == ""


def test_gpus_that_torch_does_not_see_are_counted(
    has_gpus: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_gpus(8, *[(9, 0)] * 7)
    assert chosen() == "cuda"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchflow: torch ")
    assert "with CUDA 13.0 sees 7 of the 8 GPUs of this machine; nvidia-smi" in line
    # Those that the user names are all that count.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6")
    assert compare_with_driver() is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join("01234567"))
    assert "7 of the 8 GPUs of CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7;" in str(compare_with_driver())


@pytest.mark.parametrize("none", ["", "-1"])
def test_a_user_may_hide_all_gpus(
    has_gpus: Any, monkeypatch: pytest.MonkeyPatch, none: str
) -> None:
    has_gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
    assert (compare_with_driver(), chosen()) == (None, "cpu")


def test_an_encoder_that_no_machine_has_room_for_is_refused(has_gpus: Any) -> None:
    has_gpus(2, (9, 0), (9, 0))
    assert chosen(gpus_per_encoder=2.0) == "cuda"
    with pytest.raises(UsageError, match=r"^--gpus-per-encoder 4: this machine has 2 GPUs$"):
        chosen(gpus_per_encoder=4.0)


class Nodes:
    """Stands for Ray, in a cluster whose nodes' GPUs answer like this; None is one that is busy."""

    def __init__(self, *answers: Any) -> None:
        self._answers = dict(enumerate(answers))

    def nodes(self) -> list[dict[str, Any]]:
        here = [
            {"NodeID": f"{n:056x}", "Alive": True, "Resources": {"GPU": 1}} for n in self._answers
        ]
        return [*here, {"NodeID": "f" * 56, "Alive": True, "Resources": {"CPU": 8}}]

    def remote(self, **claims: Any) -> Any:
        assert claims["num_gpus"] > 0
        return lambda function: self

    def options(self, scheduling_strategy: Any) -> Any:
        node = int(scheduling_strategy.node_id, 16)
        return type("Task", (), {"remote": lambda task: node})()

    def wait(self, tasks: list[int], **options: Any) -> tuple[list[int], list[int]]:
        assert options["num_returns"] == len(tasks)
        busy = [task for task in tasks if self._answers[task] is None]
        return [task for task in tasks if task not in busy], busy

    def get(self, task: int) -> Any:
        answer = self._answers[task]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, task: int) -> None:
        assert self._answers[task] is None


def dtype_on(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> str:
    nodes = Nodes(*answers)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    for name in ("nodes", "remote", "wait", "get", "cancel"):
        monkeypatch.setattr(ray, name, getattr(nodes, name))
    return default_dtype("cuda")


def test_a_cluster_of_several_kinds_has_a_dtype_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtype_on(monkeypatch, [(9, 0)], [(8, 0)]) == "bfloat16"
    assert dtype_on(monkeypatch, [(9, 0)], [(7, 5)]) == "float16"
    assert dtype_on(monkeypatch, [(9, 0)], None) == "bfloat16"
    assert dtype_on(monkeypatch, GetTimeoutError("the node has gone"), [(7, 0)]) == "float16"


def test_gpus_that_are_all_busy_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"no GPU of the cluster was free within 60 s.*--dtype"):
        dtype_on(monkeypatch, None, None)


def test_a_node_whose_torch_sees_no_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = DeviceError("Ray has a GPU on node-7, but torch sees none")
    trace = f"Traceback (most recent call last):\n  File ...\npipeline.errors.DeviceError: {cause}"
    error = RayTaskError("_capabilities", trace, cause).as_instanceof_cause()
    with pytest.raises(DeviceError) as raised:
        dtype_on(monkeypatch, [(9, 0)], error)
    assert str(raised.value) == str(cause)
