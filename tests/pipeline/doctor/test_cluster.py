"""Nodes side by side: on a real cluster of two, and made up."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

from pipeline.doctor.capacity import Node
from pipeline.doctor.cluster import compare_versions
from pipeline.doctor.finding import Finding

SCRIPT = Path(__file__).with_name("two_node_driver.py")


def node(name: str, torch: str, code: str = "abc") -> Node:
    values = {"torch": torch, "patchflow": "0.1.0", "code": code}
    packages = Finding(step="packages", result="ok", figure="", values=values)
    return Node(name=name, cpus=1, findings=[packages])


def test_a_node_with_another_torch_is_broken() -> None:
    nodes = [node("a", "2.13"), node("b", "2.12"), node("c", "2.13")]
    first, second, third = compare_versions(nodes)
    assert (first, third) == (nodes[0], nodes[2])
    assert second.findings[-1].result == "broken"
    assert second.findings[-1].figure == "torch 2.12, elsewhere 2.13"


def test_a_node_with_other_code_of_the_same_version_is_broken() -> None:
    nodes = [node("a", "2.13"), node("b", "2.13"), node("c", "2.13", code="def")]
    assert [len(found.findings) for found in compare_versions(nodes)] == [1, 1, 2]


def test_a_node_that_said_nothing_is_not_compared() -> None:
    silent = Node(name="b", cpus=1, findings=[])
    assert compare_versions([silent]) == [silent]
    assert compare_versions([node("a", "2.13"), silent])[1] == silent


def test_every_node_of_a_cluster_is_examined(commands: Any) -> None:
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = commands.start(
        sys.executable, "-m", "tests.pipeline.doctor.two_node_driver", env=auth
    ).ended()
    assert done.code == 0, str(done)
    *lines, last = done.out.splitlines()
    said = [line for line in lines if line.startswith("127.")]
    assert sorted(said) == [f"127.0.0.{n}: running for 5 s" for n in (2, 3)]
    found = {node["name"]: node["findings"] for node in json.loads(last)}
    head = [(finding["step"], finding["result"]) for finding in found["127.0.0.2"]]
    assert [step for step, _ in head][:3] == ["packages", "GPUs", "clock"]
    assert [finding["figure"] for finding in found["127.0.0.3"]][1] == "Ray counts 2"
    second = {finding["step"]: finding for finding in found["127.0.0.3"]}
    assert second["node"]["figure"] == "its task failed: RuntimeError: the node is sick"
    assert second["clock"]["result"] == "warning"
    assert "ahead of the driver" in second["clock"]["figure"]
    broken = {finding["step"] for own in found.values() for finding in own}
    assert "versions" in broken
