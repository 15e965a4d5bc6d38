"""GPUs as torch sees them: how many, what they can compute in, and why there are none."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from pipeline.config import ComputeDevice, ComputeDtype
from pipeline.errors import ClusterError, DeviceError
from pipeline.head_start import in_cluster

Capability = tuple[int, int]

_DEVICE_FILES = Path("/dev")
# What drivers of GPUs put there: NVIDIA's, that of Windows' subsystem, AMD's.
_DRIVERS = ("nvidiactl", "dxg", "kfd")
# Tensor cores multiply bfloat16 from here on; before, only float16.
_BFLOAT16_FROM: Capability = (8, 0)
# A share of a GPU that is free unless another job has all of it.
_PROBE_SHARE = 0.001
_PROBE_S = 60.0


def _stand_in() -> tuple[int, Capability] | None:
    """Returns the GPUs that a test pretends this machine to have: their number and capability.

    Only tests set the variable, such as `2:8.0`. Ray then schedules by these GPUs, and every
    decision is that of a GPU run, but encoders compute on the CPU.
    """
    value = os.environ.get("PATCHFLOW_TEST_GPUS")
    if value is None:
        return None
    count, major, minor = map(int, value.replace(".", ":").split(":"))
    return count, (major, minor)


def torch_device(device: ComputeDevice) -> ComputeDevice:
    """Returns the torch device that an encoder actor computes on."""
    return "cpu" if _stand_in() else device


def count_gpus() -> int:
    """Returns the number of GPUs of this machine that torch sees."""
    pretended = _stand_in()
    if pretended:
        return pretended[0]
    if not any((_DEVICE_FILES / driver).exists() for driver in _DRIVERS):
        return 0  # Importing torch takes a second.
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


def compare_with_driver() -> str | None:
    """Returns one line on the GPUs of this machine's NVIDIA driver that torch does not see.

    None if there is no such driver, or torch sees all of its GPUs.
    """
    if _stand_in() or not (_DEVICE_FILES / "nvidiactl").exists():
        return None
    import torch  # noqa: PLC0415

    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA driver, but {build} is a build without CUDA; install a "
            "CUDA build (https://pytorch.org/get-started/locally)"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        present = len(list(_DEVICE_FILES.glob("nvidia[0-9]*")))
    else:
        present = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    seen = torch.cuda.device_count()
    if seen == present:
        return None
    where = "this machine" if visible is None else f"CUDA_VISIBLE_DEVICES={visible}"
    return (
        f"{build} with CUDA {torch.version.cuda} sees {seen} of the {present} GPUs of {where}; "
        "nvidia-smi shows them, and whether the driver is new enough for this CUDA"
    )


def check_visible() -> None:
    """Checks, in a process that Ray gave a GPU, that torch sees it.

    Raises:
        DeviceError: It sees none.
    """
    import torch  # noqa: PLC0415

    if _stand_in() or torch.cuda.is_available():
        return
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise DeviceError(
        f"Ray has a GPU on {socket.gethostname()}, but torch {torch.__version__} there, {cuda}, "
        "sees none; install a CUDA build of torch that the node's driver supports, or use "
        "--device cpu"
    )


def default_dtype(device: ComputeDevice) -> ComputeDtype:
    """Returns the compute dtype of a new output on `device`.

    float32 on a CPU, bfloat16 on GPUs of compute capability 8.0 or more; float16 if one GPU of
    this machine, or of the cluster that is joined, has less.

    Raises:
        ClusterError: No GPU of the cluster became free to look at.
        DeviceError: torch sees no GPU where Ray has one.
    """
    if device == "cpu":
        return "float32"
    least = min(_cluster_capabilities() if in_cluster() else _capabilities())
    return "bfloat16" if least >= _BFLOAT16_FROM else "float16"


def _capabilities() -> list[Capability]:
    """The compute capability of every GPU that this process sees; at least one."""
    check_visible()
    pretended = _stand_in()
    if pretended:
        return [pretended[1]]
    import torch  # noqa: PLC0415

    return [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())]


def _cluster_capabilities() -> list[Capability]:
    """Those of a GPU of every node of the joined cluster that has one free; the driver has none."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    probe = ray.remote(num_cpus=0, num_gpus=_PROBE_SHARE)(_capabilities)
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    asked = [
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        )
        for node in nodes
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    pending = [task.remote() for task in asked]
    ready, waiting = ray.wait(pending, num_returns=len(pending), timeout=_PROBE_S)
    for task in waiting:
        ray.cancel(task)
    found: list[Capability] = []
    for task in ready:
        try:
            found += ray.get(task)
        except DeviceError as error:  # Ray's subclass, whose text is the whole traceback.
            raise DeviceError(str(getattr(error, "cause", error))) from error
        except ray.exceptions.RayError:
            continue  # The node went away.
    if not found:
        raise ClusterError(
            f"no GPU of the cluster was free within {_PROBE_S:.0f} s, to look at its compute "
            "capability; give --dtype, or wait for the jobs that have them"
        )
    return found


def warn(line: str) -> None:
    """Prints one line for the user."""
    print(f"patchflow: {line}", file=sys.stderr)
