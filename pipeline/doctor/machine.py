"""One machine, step by step: first what is there, then what its devices compute and how fast.

Steps of different devices run side by side, those of one device one after the other.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options
from pipeline.doctor.process import Step, run_step

# All of one machine; joining a cluster and asking its nodes takes some seconds more.
LIMIT_S = 100.0
_STEPS = "pipeline.doctor.steps"
_DEVICE_HINT = "reset the device (nvidia-smi -r) or take it out"
_CPU_HINT = "this encoder is slow on a CPU: try a smaller one"
_STORAGE_HINT = "the storage does not answer: check its address, the network and credentials"

_PRESENT = (
    Step(name="packages", target=f"{_STEPS}.host:packages", deadline_s=20),
    Step(name="driver", target=f"{_STEPS}.driver:check", deadline_s=40, hint=_DEVICE_HINT),
    Step(name="compiler", target=f"{_STEPS}.host:compiler", deadline_s=20),
    Step(name="kernel cache", target=f"{_STEPS}.host:cache", deadline_s=20),
    Step(name="/dev/shm", target=f"{_STEPS}.host:shared_memory", deadline_s=20),
    Step(name="sandbox", target=f"{_STEPS}.decoding:sandbox", deadline_s=30),
)
_INPUT = Step(name="input", target=f"{_STEPS}.objects:inputs", deadline_s=30, hint=_STORAGE_HINT)
_OUTPUT = Step(name="output", target=f"{_STEPS}.objects:output", deadline_s=30, hint=_STORAGE_HINT)
_PHOTOS = Step(name="photos", target=f"{_STEPS}.decoding:photos", deadline_s=30)
_ATTENTION = Step(
    name="attention", target=f"{_STEPS}.attention:check", deadline_s=60, hint=_DEVICE_HINT
)
_PACKS = Step(name="packs", target=f"{_STEPS}.packs:check", deadline_s=60, hint=_DEVICE_HINT)
_SPEED = Step(
    name="speed",
    target=f"{_STEPS}.speed:check",
    deadline_s=90,
    late="warning",
    hint="compiling takes long here: runs do it once and keep it in the cache",
)
_RECOVERY = (
    Step(
        name="out of memory",
        target=f"{_STEPS}.recovery:memory",
        deadline_s=60,
        hint=_DEVICE_HINT,
    ),
    Step(
        name="device error",
        target=f"{_STEPS}.recovery:sticky",
        deadline_s=50,
        hint=_DEVICE_HINT,
    ),
)

Job = Callable[[threading.Event, Callable[[str], None]], list[Finding]]
"""A step that is ready to run; it takes what stops it, and what says that it runs long."""


def examine(options: Options) -> Iterator[Finding | str]:
    """Examines this machine, in `LIMIT_S` at most.

    Yields:
        Findings as they come; and lines that say which step takes long.
    """
    end_s = time.monotonic() + LIMIT_S
    gpus: list[Finding] = []
    first = [
        *_PRESENT,
        *([_INPUT] if options.inputs else []),
        *([_OUTPUT] if options.output else []),
    ]
    for said in _side_by_side([[_job(step, options, end_s)] for step in first]):
        if isinstance(said, Finding) and said.step == "GPU" and said.result != "broken":
            gpus.append(said)
        yield said
    photos = _job(_PHOTOS, options, end_s)
    if not gpus:
        steps = [
            replace(step, late="warning", hint=_CPU_HINT) for step in (_ATTENTION, _PACKS, _SPEED)
        ]
        lane = _lane(steps, options, end_s, "CPU")
        if options.device != "cuda":
            yield from _side_by_side([[photos, *lane]])
        return
    devices = [gpu.device for gpu in gpus]
    lanes = [_lane((_ATTENTION, _PACKS), options, end_s, device) for device in devices]
    lanes += [_lane(_RECOVERY, options, end_s, device) for device in devices]
    yield from _side_by_side(lanes)
    # Alone on each device, and photos beside it, as in a run.
    speeds = [_lane((_SPEED,), options, end_s, device) for device in devices]
    yield from _side_by_side([*speeds, [photos]])


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _lane(steps: Sequence[Step], options: Options, end_s: float, device: str) -> list[Job]:
    return [_job(step, options, end_s, device) for step in steps]


def _job(step: Step, options: Options, end_s: float, device: str = "") -> Job:
    env = {}
    if device.startswith("GPU "):
        env["CUDA_VISIBLE_DEVICES"] = _visible(int(device.removeprefix("GPU ")))
    run = partial(run_step, step, options, end_s=end_s, device=device, env=env)
    return lambda stop, say: run(stop=stop, say=say)


def _visible(index: int) -> str:
    """The name of the GPU that this process sees at an index, for `CUDA_VISIBLE_DEVICES`."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[index].strip() if names else str(index)


def _side_by_side(lanes: list[list[Job]]) -> Iterator[Finding | str]:
    """Runs lanes in threads, the jobs of each one after the other."""
    said: queue.SimpleQueue[Finding | str | None] = queue.SimpleQueue()
    stop = threading.Event()

    def follow(lane: list[Job]) -> None:
        try:
            for job in lane:
                for finding in job(stop, said.put):
                    said.put(finding)
        finally:
            said.put(None)

    with ThreadPoolExecutor(len(lanes)) as threads:
        running = [threads.submit(follow, lane) for lane in lanes]
        try:
            for _ in lanes:
                while (heard := said.get()) is not None:
                    yield heard
        finally:  # Also when nobody takes any more.
            stop.set()
        for lane in running:
            lane.result()
