"""Ray: started for a local run and stopped after it, or joined inside `ray job submit`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.config import ComputeDevice, RunConfig
from pipeline.errors import ClusterError, UsageError
from pipeline.gpus import compare_with_driver, count_gpus, warn
from pipeline.head_start import head_start, in_cluster
from pipeline.one_machine import (
    SYSTEM_CONFIG,
    few_actors,
    is_known_ray,
    say_nothing,
    signals_held,
    start_little,
    system_memory,
)
from pipeline.strangers import refuse_open_cluster
from pipeline.workers import encoders_on, resources

# The object store's: at least, and where there is room, for each GPU or all CPUs. A GPU's encoder
# has up to 17 blocks at once, and some wait for it. A clip at the family's own size has up to
# 240 MB of patches: of 512 MiB, each had to wait for the last, and 24 took 110 s instead of 86.
_LEAST_OBJECT_STORE_BYTES = 512 * 2**20
_OBJECT_STORE_BYTES = 2 * 2**30
_CPU_OBJECT_STORE_BYTES = 512 * 2**20  # For each, where they are many: see `_block_bytes`.
_OBJECT_STORE_SHARE = 1 / 8  # of a machine's memory, at most
_SHARED_MEMORY = "/dev/shm"


def quiet() -> None:
    """Turns off what Ray and the libraries print; call before Ray is imported.

    Ray's core writes to file descriptor 2 behind Python's back, so that is where it is cut off;
    `sys.stderr` goes on to the real one.
    """
    own = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)
    sys.stderr = os.fdopen(own, "w", buffering=1)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warnings.filterwarnings("ignore", module=r"ray\.")
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def ray_running(
    *, verbose: bool, insecure: bool = False, device: ComputeDevice = "cpu"
) -> Iterator[None]:
    """Joins the cluster of the environment, or runs a local one for as long as the block.

    The process is to have no other use for Ray: settings of a local one stay behind.

    Args:
        verbose: Whether Ray says what it does.
        device: What the encoders of a local one run on.
        insecure: Whether a cluster that strangers may reach is joined.

    Raises:
        ClusterError: Ray did not start, or could not be joined.
        UsageError: The cluster is open to strangers, or is to be joined from outside.
    """
    if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
        # Ray Data does not run there, and where the cluster listens cannot be seen.
        raise UsageError(
            f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} is Ray's client, which is not supported: run "
            "it on the cluster, by ray job submit"
        )
    with ExitStack() as stack:
        stack.enter_context(head_start())
        import ray  # noqa: PLC0415 (reads its environment when imported)

        # Ray would end the process without a word; ours stays in place.
        ray._private.utils.set_sigterm_handler = say_nothing
        stack.callback(ray.shutdown)
        _start(verbose=verbose, device=device)
        if in_cluster():
            head: str = ray.get_runtime_context().gcs_address
            dashboard = getattr(ray._private.worker._global_node, "webui_url", None)
            refuse_open_cluster(head, dashboard, insecure=insecure)
        else:
            stack.enter_context(few_actors())
        yield


def _start(*, verbose: bool, device: ComputeDevice) -> None:
    with ThreadPoolExecutor(1) as beside:  # Ray's start is waiting for its processes.
        # The second is what the first imports when it is first used.
        importing = [beside.submit(import_module, name) for name in ("ray.data", "ray.util.state")]
        with nullcontext() if in_cluster() else signals_held():
            _init(verbose=verbose, device=device)
        for imported in importing:
            imported.result()
    if not verbose:
        for name in ("ray", "ray.data"):  # Importing them has set their levels.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _init(*, verbose: bool, device: ComputeDevice) -> None:
    import ray  # noqa: PLC0415

    if not verbose:
        # It also prints what the cluster says of lost machines, over the progress line.
        ray._private.worker.print_to_stdstream = say_nothing
    level = logging.INFO if verbose else logging.CRITICAL
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    if not in_cluster():
        start_little(log_monitor=verbose)
        options |= {
            "address": "local",
            "object_store_memory": _object_store_bytes(device),
            # Ray counts with libraries of the driver: it may see GPUs that torch does not.
            "num_gpus": count_gpus() if device == "cuda" else 0,
            "include_dashboard": False,
            # Workers have this process's environment, and nobody is there to make them another.
            "_skip_env_hook": True,
            "_node_ip_address": "127.0.0.1",
        }
        if is_known_ray():  # It ends at a name that it does not know.
            options["_system_config"] = SYSTEM_CONFIG
    try:
        # Ray has its workers import from the working directory first: it shall be ours, not one of
        # strangers' files, among which there may be a numpy.py.
        with contextlib.chdir(Path(__file__).parents[1]):
            ray.init(**options)
    except Exception as error:  # Ray raises anything from ConnectionError to ValueError here.
        reason = " ".join(str(error).split())[:300]
        where = (
            f"joining RAY_ADDRESS={os.environ['RAY_ADDRESS']}" if in_cluster() else "starting Ray"
        )
        raise ClusterError(f"{where} failed: {reason}") from error


def _object_store_bytes(device: ComputeDevice) -> int:
    """What a local cluster's may take: its memory is only taken while objects are in it."""
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:  # There is none, and Ray keeps its objects in a file.
        return _LEAST_OBJECT_STORE_BYTES
    wanted = max(
        (count_gpus() if device == "cuda" else 1) * _OBJECT_STORE_BYTES,
        _CPU_OBJECT_STORE_BYTES * (os.cpu_count() or 1),
    )
    most = min(0.9 * free, _OBJECT_STORE_SHARE * system_memory())
    return max(_LEAST_OBJECT_STORE_BYTES, int(min(wanted, most)))


def choose_device(config: RunConfig) -> ComputeDevice:
    """The device of a run. Inside a cluster, Ray must be joined already.

    Prints a line if torch does not see all GPUs of a machine that is not in a cluster.

    Raises:
        UsageError: CUDA is asked for and there is none, or it has no room for an encoder.
    """
    if config.device == "cpu":
        return "cpu"
    if in_cluster():
        found = int(resources().get("GPU", 0))
        if config.device == "cuda" and not found:
            raise UsageError("--device cuda: no node of the cluster has a GPU; use --device cpu")
        return "cuda" if found else "cpu"
    found, hidden = count_gpus(), compare_with_driver()
    if config.device == "cuda" and not found:
        raise UsageError(
            f"--device cuda: {hidden or 'there is no CUDA GPU here'}; otherwise use --device cpu"
        )
    if hidden is not None:
        warn(hidden if found else f"{hidden}; this run computes on the CPU")
    if found and not encoders_on({"GPU": found}, config.gpus_per_encoder):
        raise UsageError(
            f"--gpus-per-encoder {config.gpus_per_encoder:g}: this machine has {found} GPUs"
        )
    return "cuda" if found else "cpu"
