"""Every node of a cluster, by one task on each, and what only a comparison of nodes shows.

A task claims neither CPUs nor GPUs, so that nodes whose GPUs other jobs hold are examined too.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.doctor.capacity import Node
from pipeline.doctor.finding import Finding, first_line
from pipeline.doctor.machine import LIMIT_S, cores, examine
from pipeline.doctor.options import Options
from pipeline.doctor.steps.objects import judge_skew

# Beyond a node's own limit, for its task to start.
_START_S = 12.0
_COMPARED = ("torch", "patchflow", "code")
# Without it Ray hides all GPUs from a task that claims none.
_SEE_GPUS = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}

Stamped = tuple[float, Finding | str]
"""What a node says, with its clock's time; `""` only has the time."""


@dataclass
class _Examined:
    """A node under examination."""

    name: str
    cpus: float
    findings: list[Finding] = field(default_factory=list)
    ahead_s: float | None = None
    """Its clock against this one's; what it says takes its time, so the most that was seen."""


def examine_here(options: Options, heard: list[Node]) -> Iterator[str]:
    """Examines this machine, and adds it to `heard`.

    Yields:
        Lines that say which step takes long.
    """
    findings = []
    for said in examine(options):
        if isinstance(said, str):
            yield said
        else:
            findings.append(said)
    heard.append(Node(name=socket.gethostname(), cpus=cores(), findings=findings))


def examine_nodes(options: Options, heard: list[Node]) -> Iterator[str]:
    """Examines all nodes of the cluster that was joined, and adds them to `heard`.

    Yields:
        Lines that say which step of which node takes long.
    """
    import ray  # noqa: PLC0415 (a machine without it is examined alone)

    alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    end_s = time.monotonic() + LIMIT_S + _START_S
    running: list[tuple[_Examined, Any]] = [
        (
            _Examined(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0)),
            _start(options, node),
        )
        for node in alive
    ]
    nodes = [node for node, _ in running]
    while running and (left_s := end_s - time.monotonic()) > 0:
        ready, _ = ray.wait([task for _, task in running], timeout=left_s)
        for node, task in [pair for pair in running if pair[1] in ready]:
            try:
                said = _next(node, task)
            except StopIteration:
                running.remove((node, task))
                continue
            except Exception as error:  # The node's own errors come with their types.
                running.remove((node, task))
                node.findings.append(_failed(error))
                continue
            if isinstance(said, Finding):
                node.findings.append(said)
            elif said:
                yield f"{node.name}: {said}"
    for node, _ in running:
        figure = f"did not end within {LIMIT_S + _START_S:.0f} s"
        advice = "is the node overloaded, or lost?"
        node.findings.append(Finding(step="node", result="broken", figure=figure, advice=advice))
    for node in nodes:
        if node.ahead_s is not None:
            node.findings.append(judge_skew(node.ahead_s, "the driver"))
    found = [Node(name=n.name, cpus=n.cpus, findings=n.findings) for n in nodes]
    heard += compare_versions(found)


def compare_versions(nodes: Sequence[Node]) -> list[Node]:
    """Adds a finding to each node whose torch or patchflow is not that of most nodes."""
    versions = [_versions(node) for node in nodes]
    common = {
        name: Counter(found[name] for found in versions if found).most_common(1)[0][0]
        for name in _COMPARED
        if any(versions)
    }
    compared = []
    for node, found in zip(nodes, versions, strict=True):
        other = [name for name in common if found and found[name] != common[name]]
        if other:
            texts = (f"{name} {found[name]}, elsewhere {common[name]}" for name in other)
            finding = Finding(
                step="versions",
                result="broken",
                figure="; ".join(texts),
                advice="install the same on all nodes",
            )
            compared.append(replace(node, findings=[*node.findings, finding]))
        else:
            compared.append(node)
    return compared


def _versions(node: Node) -> dict[str, str]:
    for finding in node.findings:
        if finding.step == "packages" and finding.values:
            return {name: str(finding.values.get(name)) for name in _COMPARED}
    return {}


def _start(options: Options, node: dict[str, Any]) -> Any:
    """Starts a node's task; it streams what it says."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task: Any = ray.remote(_examine_node).options(
        num_cpus=0,
        max_retries=0,
        num_returns="streaming",
        scheduling_strategy=there,
        runtime_env=_SEE_GPUS,
    )
    return task.remote(replace(options, ray_gpus=node["Resources"].get("GPU", 0.0)))


def _examine_node(options: Options) -> Iterator[Stamped]:
    yield time.time(), ""
    for said in examine(options):
        yield time.time(), said


def _next(node: _Examined, task: Any) -> Finding | str:
    """Takes the next that a node says.

    Raises:
        StopIteration: It has said all.
        Exception: Its task failed.
    """
    import ray  # noqa: PLC0415

    sent_s, said = ray.get(next(task))
    ahead_s = sent_s - time.time()
    node.ahead_s = ahead_s if node.ahead_s is None else max(node.ahead_s, ahead_s)
    found: Finding | str = said
    return found


def _failed(error: Exception) -> Finding:
    lines = str(error).strip().splitlines()
    # The last line of a remote traceback is the error.
    figure = f"its task failed: {first_line(lines[-1] if lines else error)}"
    advice = "is patchflow installed there, and the node alive?"
    return Finding(step="node", result="broken", figure=figure, advice=advice)
