"""A driver that examines two nodes of a cluster on this machine, whose steps are made up.

Prints what it hears, and then each node's findings as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import ray
from ray.cluster_utils import Cluster

from pipeline.doctor import cluster
from pipeline.doctor.capacity import Node
from pipeline.doctor.cluster import examine_nodes
from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options

HEAD, SECOND = "127.0.0.2", "127.0.0.3"


def examine(options: Options) -> Iterator[cluster.Stamped]:
    """Node 3 has another torch, a clock that is a minute ahead, and two GPUs by Ray's count."""
    second = ray.util.get_node_ip_address() == SECOND
    versions = {"torch": "2.12" if second else "2.13", "patchflow": "0.1.0", "code": "abc"}
    ahead_s = 60 if second else 0
    packages = Finding(step="packages", result="ok", figure="versions", values=versions)
    yield time.time() + ahead_s, "running for 5 s"
    yield time.time() + ahead_s, packages
    gpus = Finding(step="GPUs", result="ok", figure=f"Ray counts {options.ray_gpus:g}")
    yield time.time() + ahead_s, gpus
    if second:
        raise RuntimeError("the node is sick")


def main() -> None:
    """Examines both, from a driver on the head, and stops the cluster."""
    memory = {"object_store_memory": 128 * 2**20, "num_cpus": 1}
    nodes = Cluster(initialize_head=True, head_node_args=memory | {"node_ip_address": HEAD})
    nodes.add_node(**memory, node_ip_address=SECOND, num_gpus=2)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    cluster._examine_node = examine
    heard: list[Node] = []
    for line in examine_nodes(Options(), heard):
        print(line)
    print(json.dumps([asdict(node) for node in heard]))
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, ".")
    main()
