"""What Ray starts for a cluster, and one machine has no use for: left out of a local run.

Ray has no options for it, so functions of its own that start it are replaced; in another version
than the one that this was written for, nothing is.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

_KNOWN_RAY = "2.60.0"
# Settings of Ray's core.
SYSTEM_CONFIG = {
    # A worker that waits a second for its next task would be ended, and another started, again and
    # again: a second of a core without a template.
    "idle_worker_killing_time_threshold_ms": 600_000,
    # Ray tries to reach its object store a moment too early in half of all starts, and again after
    # a second, ten times. Rather after 20 ms, 500 times.
    "raylet_client_connect_timeout_milliseconds": 20,
    "raylet_client_num_connect_attempts": 500,
    # It would have the driver wait until as many workers as there are CPUs have all their imports.
    "prestart_worker_first_driver": False,
    # Its own is 15: an encoder would wait for the driver, and come hardly before what feeds it.
    "worker_niceness": 0,
}
_AGENTS = ("dashboard_agent", "runtime_env_agent")
_IDLE_AGENT = Path(__file__).with_name("idle_agent.py")
_WORKER_START = Path(__file__).with_name("worker_start.py")


def is_known_ray() -> bool:
    """Whether Ray's private parts are those that this was written for."""
    return version("ray") == _KNOWN_RAY


def system_memory() -> int:
    """This machine's memory in bytes, or what a container may have of it if Ray can tell."""
    if not is_known_ray():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    from ray._common.utils import get_system_memory  # noqa: PLC0415 (as below)

    return int(get_system_memory())


@contextmanager
def signals_held() -> Iterator[None]:
    """Lets SIGINT and SIGTERM wait: Ray crashes or waits for ever when it is halfway started."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def start_little(*, log_monitor: bool) -> None:
    """Keeps Ray from starting what a cluster of one machine, without a dashboard, has no use for.

    Its API server, autoscaler and agents are four of the five seconds that it takes to start, and
    one of two to end. Call it before Ray starts.
    """
    if not is_known_ray():
        return
    import ray._private.node  # noqa: PLC0415 (Ray reads its environment when imported)
    import ray._private.services  # noqa: PLC0415
    import ray._private.utils  # noqa: PLC0415

    useless = ["start_api_server", "start_monitor", *([] if log_monitor else ["start_log_monitor"])]
    for name in useless:
        setattr(ray._private.node.Node, name, say_nothing)
    ray._private.utils.get_dashboard_dependency_error = say_nothing  # It would import them all.
    services = ray._private.services
    python = services._build_python_executable_command_memory_profileable
    services._build_python_executable_command_memory_profileable = partial(_python, python)
    services.start_raylet = partial(_start_raylet, services.start_raylet)


def _python(
    python: Callable[..., list[str]], component: str, *arguments: Any, **options: Any
) -> list[str]:
    """What runs the script of one of Ray's components."""
    if component in _AGENTS:
        return [sys.executable, "-I", "-S", str(_IDLE_AGENT)]
    return python(component, *arguments, **options)


def _start_raylet(start: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    bound = signature(start).bind(*arguments, **options)
    bound.arguments["setup_worker_path"] = str(_WORKER_START)
    return start(*bound.args, **bound.kwargs)


@contextmanager
def few_actors() -> Iterator[None]:
    """Keeps Ray Data from starting actors of its own beside the driver.

    Each of the three is another process, just when all cores are at work on the first items.
    """
    if not is_known_ray():
        yield
        return
    tracker = "get_or_create_actor_location_tracker"
    replaced: dict[tuple[str, str], _Here] = {
        ("stats", "get_or_create_stats_actor"): _Here(_Statistics()),
        (
            "cluster_autoscaler.default_autoscaling_coordinator",
            "get_or_create_autoscaling_coordinator",
        ): _Here(_Coordinator()),
        ("utils.cached_ray_internals", tracker): _Here(_Locations()),
        ("execution.operators.actor_pool_map_operator", tracker): _Here(_Locations()),
    }
    with ExitStack() as stack:
        for (place, name), here in replaced.items():
            module = import_module(f"ray.data._internal.{place}")
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, partial(_itself, here))
        yield


class _Here:
    """Called as an actor is, in the process that calls."""

    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):  # Pickling asks for what is not there.
            raise AttributeError(name)
        return _Method(getattr(self._instance, name))


class _Method:
    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def remote(self, *args: Any, **options: Any) -> Any:
        import ray  # noqa: PLC0415

        return ray.put(self._call(*args, **options))


class _Statistics:
    """For a dashboard; but the names of datasets come from here, too."""

    def gen_dataset_id(self) -> str:
        return uuid.uuid4().hex

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return say_nothing


class _Coordinator:
    """Shares a cluster out among datasets; here one has it all, and there is no more to ask for."""

    def request_resources(self, **options: Any) -> None:
        pass

    def cancel_request(self, requester: str) -> None:
        pass

    def get_reserved_resources(self, requester: str) -> dict[str, dict[str, float]]:
        return self._resources

    @cached_property
    def _resources(self) -> dict[str, dict[str, float]]:
        import ray  # noqa: PLC0415

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


class _Locations:
    """Actors' machines, of which there is one."""

    def update_actor_location(self, actor: str, node: str) -> None:
        pass

    def get_actor_locations(self, actors: tuple[str, ...]) -> dict[str, str]:
        return {}


def _itself(here: _Here) -> _Here:
    return here


def say_nothing(*args: Any, **options: Any) -> None:
    """Stands for a function that is not to do anything."""
