"""NVIDIA's driver against torch's CUDA, and each GPU against what torch was built for."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options

_STEP = "driver"
_VERSION = Path("/proc/driver/nvidia/version")
_GPUS = Path("/proc/driver/nvidia/gpus")
# Other processes hold memory where more than a context of CUDA's own is taken.
_BUSY_BYTES = 2 * 2**30


def check(options: Options) -> Iterator[Finding]:
    """Driver, GPUs and their capabilities; imports torch."""
    import torch  # noqa: PLC0415

    driver, present = driver_version(), count_gpus()
    supported = driver_cuda()
    count = torch.cuda.device_count() if torch.version.cuda else 0
    yield judge_driver(
        torch_cuda=torch.version.cuda,
        supported=supported,
        driver=driver,
        present=max(present, int(supported is not None)),
        # A cluster's head need not have any.
        wanted=options.device == "cuda" and options.ray_gpus != 0,
    )
    if options.device == "cpu":
        return
    yield judge_count(count, present=present, ray=options.ray_gpus)
    for index in range(count):
        yield from _check_gpu(index, torch.cuda.get_arch_list())


def driver_version() -> str | None:
    """Returns the driver's version, such as `580.159.03`; None where there is no driver."""
    with suppress(OSError):
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _VERSION.read_text())
        if found:
            return found[1]
    supported = driver_cuda()
    return None if supported is None else f"for CUDA {supported // 1000}.{supported % 1000 // 10}"


def driver_cuda() -> int | None:
    """Returns the latest CUDA that the driver runs, `13000` for 13.0; None without a driver."""
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            return version.value
    return None


def count_gpus() -> int:
    """Counts the GPUs that the driver has, whatever this process may see; 0 if unknown."""
    with suppress(OSError):
        return len(list(_GPUS.iterdir()))
    return 0


def judge_driver(
    *, torch_cuda: str | None, supported: int | None, driver: str | None, present: int, wanted: bool
) -> Finding:
    """Compares the driver with torch's CUDA.

    Args:
        torch_cuda: `torch.version.cuda`; None for a CPU build.
        supported: `driver_cuda()`.
        driver: `driver_version()`.
        present: GPUs in the machine.
        wanted: Whether GPUs were asked for.
    """
    values = {"torch_cuda": torch_cuda, "driver_cuda": supported, "driver": driver}

    def found(result: Result, figure: str, advice: str = "") -> Finding:
        return Finding(step=_STEP, result=result, figure=figure, advice=advice, values=values)

    if supported is None:
        figure = "no NVIDIA driver" if not present else "a GPU, but no libcuda.so.1"
        if wanted or present:
            return found("broken", figure, "install NVIDIA's driver, or use --device cpu")
        return found("ok", f"{figure}: encoders run on the CPU")
    if torch_cuda is None:
        figure = f"driver {driver}, but torch is a CPU build"
        return found("broken", figure, "install torch for CUDA, or use --device cpu")
    major, minor = (int(part) for part in torch_cuda.split(".")[:2])
    has = (supported // 1000, supported % 1000 // 10)
    figure = f"driver {driver} runs CUDA {has[0]}.{has[1]}, torch is for {torch_cuda}"
    if has[0] < major:
        advice = f"update the driver, or install torch for CUDA {has[0]}"
        return found("broken", figure, advice)
    if has < (major, minor):
        # NVIDIA's minor version compatibility: compiled kernels run, PTX does not.
        advice = "kernels that Triton compiles may not load: update the driver"
        return found("warning", figure, advice)
    return found("ok", figure)


def judge_count(count: int, *, present: int, ray: float | None) -> Finding:
    """Compares how many GPUs torch sees with what the driver has and what Ray counts."""
    values = {"torch_gpus": count, "driver_gpus": present, "ray_gpus": ray}
    figure = f"torch sees {count} of {max(count, present)}"
    advice = ""
    if ray is not None:
        figure += f", Ray counts {ray:g}"
        if ray > count:
            advice = "actors would wait for GPUs that fail: start Ray with --num-gpus as torch sees"
        elif ray < count:
            advice = "GPUs stand idle: start Ray with --num-gpus as torch sees"
    if not advice and count < present:
        advice = "is CUDA_VISIBLE_DEVICES, or the container, hiding the others on purpose?"
    broken = (ray is not None and ray > count) or (present > 0 and count == 0)
    result: Result = "broken" if broken else "warning" if advice else "ok"
    return Finding(step="GPUs", result=result, figure=figure, advice=advice, values=values)


def judge_capability(capability: tuple[int, int], architectures: list[str]) -> tuple[Result, str]:
    """Returns a result, and what to do, for a GPU and `torch.cuda.get_arch_list()`."""
    for architecture in architectures:
        kind, _, name = architecture.partition("_")
        if kind != "sm" or not name.isdigit():  # `sm_90a` runs on that capability alone.
            if kind == "sm" and name[:-1] == f"{capability[0]}{capability[1]}":
                return "ok", ""
            continue
        major, minor = int(name[:-1]), int(name[-1])
        if major == capability[0] and minor <= capability[1]:
            return "ok", ""
    ptx = [int(name[8:]) for name in architectures if re.fullmatch(r"compute_\d+", name)]
    if any(number <= 10 * capability[0] + capability[1] for number in ptx):
        return "warning", "the first start compiles for minutes: install a torch built for it"
    return "broken", "torch has no kernels for it: install a torch built for it"


def _check_gpu(index: int, architectures: list[str]) -> Iterator[Finding]:
    import torch  # noqa: PLC0415

    device = f"GPU {index}"
    try:
        name = torch.cuda.get_device_name(index)
        capability = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
        value = float(torch.ones(8, device=f"cuda:{index}").sum())
    except RuntimeError as error:
        advice = "reset the GPU or take it out (nvidia-smi -q); is another process exclusive on it?"
        yield Finding(
            step="GPU", result="broken", figure=first_line(error), advice=advice, device=device
        )
        return
    result, advice = judge_capability(capability, architectures)
    if value != 8:
        result, advice = "broken", "it adds up eight ones wrongly: take it out"
    elif result == "ok" and total - free > _BUSY_BYTES:
        result, advice = "warning", "others use it: speeds below are lower than what it can do"
    yield Finding(
        step="GPU",
        result=result,
        figure=f"{name}, capability {capability[0]}.{capability[1]}, "
        f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
        advice=advice,
        device=device,
        values={
            "name": name,
            "capability": f"{capability[0]}.{capability[1]}",
            "free_bytes": free,
            "total_bytes": total,
        },
    )
