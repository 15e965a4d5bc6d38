"""What a machine must have beside its GPUs: packages, a compiler, folders, shared memory."""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options

_ROOT = Path(__file__).parents[3]
_SOURCES = ("encoder", "processors", "pipeline", "jobs")
# By import name, what it is for.
_NEEDED = {
    "ray": "runs",
    "pyarrow": "runs",
    "av": "decoding",
    "PIL": "decoding",
    "simplejpeg": "decoding",
    "pyseccomp": "the sandbox",
    "s3fs": "object stores",
    "tenacity": "object stores",
    "tyro": "the command line",
}
_DISTRIBUTIONS = {"PIL": "pillow"}
_SHARED_MEMORY = "/dev/shm"
# A local run gives Ray's object store at least the first, and the second for each GPU.
_LEAST_SHARED_BYTES = 2**29
_SHARED_BYTES_PER_GPU = 2 * 2**30
# Kernels of one tower take some 100 MB.
_LEAST_CACHE_BYTES = 2**30
_PROGRAM = "#include <Python.h>\nint answer(void) { return PY_MAJOR_VERSION; }\n"


def packages(options: Options) -> Iterator[Finding]:
    """Versions, which must be the same on all nodes, and what is missing."""
    names = ("torch", "triton", "ray", "patchflow")
    values = {name: _version(name) for name in names} | {"code": code_digest()}
    figure = ", ".join(f"{name} {values[name] or 'missing'}" for name in ("torch", "ray"))
    figure += f", patchflow {values['patchflow'] or 'not installed'} {str(values['code'])[:8]}"
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if values["torch"] is None:
        missing.append("torch")
    advice = ""
    if missing:
        uses = sorted({_NEEDED.get(name, "the encoder") for name in missing})
        install = " ".join(_DISTRIBUTIONS.get(name, name) for name in missing)
        figure += f"; no {install}: nothing for {', '.join(uses)}"
        advice = f"pip install {install}"
    yield Finding(
        step="packages",
        result="broken" if missing else "ok",
        figure=figure,
        advice=advice,
        values=values,
    )


def code_digest() -> str:
    """Returns a digest of patchflow's own source, which its version number does not tell apart."""
    found = hashlib.blake2b(digest_size=16)
    for source in _SOURCES:
        for path in sorted((_ROOT / source).rglob("*.py")):
            found.update(str(path.relative_to(_ROOT)).encode() + b"\0")
            found.update(hashlib.blake2b(path.read_bytes()).digest())
    return found.hexdigest()


def compiler(options: Options) -> Iterator[Finding]:
    """Whether the encoder's blocks can be compiled: Triton, a C compiler, Python's headers."""
    if not on_gpu(options):
        yield Finding(step="compiler", result="ok", figure="not needed on a CPU", device="CPU")
        return
    faults = []
    if find_spec("triton") is None:
        faults.append(("no Triton", "pip install triton"))
    command = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), None)
    if command is None:
        faults.append(("no C compiler", "apt-get install gcc"))
    elif (fault := _compile(command)) is not None:
        faults.append((f"{command} fails: {fault}", "apt-get install python3-dev"))
    result: Result = "warning" if faults else "ok"
    figure = "; ".join(fault for fault, _ in faults) or f"Triton {_version('triton')}, {command}"
    advice = ", ".join(dict.fromkeys(advice for _, advice in faults))
    if faults:
        advice += "; until then the encoder runs uncompiled"
    yield Finding(step="compiler", result=result, figure=figure, advice=advice)


def cache(options: Options) -> Iterator[Finding]:
    """The folders of compiled kernels: writable, executable, with room."""
    if not on_gpu(options):
        yield Finding(step="kernel cache", result="ok", figure="not needed on a CPU", device="CPU")
        return
    try:
        folders = cache_folders()
    except (KeyError, OSError) as error:
        figure = f"this user has no name: {first_line(error)}"
        advice = "set TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR"
        yield Finding(step="kernel cache", result="warning", figure=figure, advice=advice)
        return
    for variable, folder in folders.items():
        yield judge_cache(variable, folder)


def cache_folders() -> dict[str, Path]:
    """Returns where Inductor and Triton keep kernels, by the variable that says so.

    Raises:
        KeyError, OSError: There is no name of this user, which Inductor's folder has.
    """
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    triton = os.environ.get("TRITON_CACHE_DIR")
    return {
        "TORCHINDUCTOR_CACHE_DIR": Path(inductor)
        if inductor
        else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}",
        "TRITON_CACHE_DIR": Path(triton) if triton else Path.home() / ".triton" / "cache",
    }


def judge_cache(variable: str, folder: Path) -> Finding:
    """Tries a folder of compiled kernels."""
    advice = f"set {variable} to a folder on a local disk; until then the encoder runs uncompiled"
    result: Result = "warning"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"patchflow")
        found = os.statvfs(folder)
    except OSError as error:
        figure = f"{folder}: {error.strerror}"
    else:
        free = found.f_bavail * found.f_frsize
        if found.f_flag & os.ST_NOEXEC:
            figure = f"{folder}: mounted noexec"
        elif free < _LEAST_CACHE_BYTES:
            figure = f"{folder}: {free / 2**20:.0f} MiB free"
        else:
            result, advice, figure = "ok", "", f"{folder}: {free / 2**30:.0f} GiB free"
    return Finding(step="kernel cache", result=result, figure=figure, advice=advice)


def shared_memory(options: Options) -> Iterator[Finding]:
    """Whether Ray's object store has room in `/dev/shm`."""
    gpus = options.ray_gpus if options.ray_gpus is not None else _count_gpus(options)
    yield judge_shared_memory(_SHARED_MEMORY, int(gpus))


def judge_shared_memory(folder: str, gpus: int) -> Finding:
    """Compares what a folder in memory has with what a machine of so many GPUs needs."""
    wanted = max(_LEAST_SHARED_BYTES, gpus * _SHARED_BYTES_PER_GPU)
    try:
        found = shutil.disk_usage(folder)
    except OSError as error:
        figure = f"{error.strerror}: Ray keeps its objects on a disk"
        return Finding(step="/dev/shm", result="warning", figure=figure, advice="mount it")
    figure = f"{found.free / 2**30:.1f} of {found.total / 2**30:.1f} GiB free"
    values = {"free_bytes": found.free, "total_bytes": found.total}
    if 0.9 * found.free < wanted:
        need = f"{1.2 * wanted / 2**30:.0f} GiB"
        advice = f"Ray would keep objects on a disk: give it {need} (docker run --shm-size)"
        return Finding(
            step="/dev/shm", result="warning", figure=figure, advice=advice, values=values
        )
    return Finding(step="/dev/shm", result="ok", figure=figure, values=values)


def on_gpu(options: Options) -> bool:
    """Whether the encoder would run on a GPU of this machine; does not import torch."""
    if options.device != "auto":
        return options.device == "cuda"
    return _count_gpus(options) > 0


def _count_gpus(options: Options) -> int:
    from pipeline.doctor.steps.driver import count_gpus, driver_cuda  # noqa: PLC0415

    if options.device == "cpu":
        return 0
    return max(count_gpus(), int(driver_cuda() is not None))


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def _compile(command: str) -> str | None:
    """Compiles a small library as Triton does; returns what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text(_PROGRAM)
        include = sysconfig.get_paths()["include"]
        call = [*command.split(), "-shared", "-fPIC", f"-I{include}", "-o", f"{folder}/try.so"]
        try:
            done = subprocess.run(
                [*call, str(source)], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return first_line(error)
    faults = [line for line in done.stderr.splitlines() if "error" in line]
    return None if done.returncode == 0 else first_line("\n".join(faults) or done.stderr, 80)
