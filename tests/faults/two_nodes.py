"""A cluster of two machines on this one; SIGUSR1 kills the second one's raylet, SIGUSR2 adds one.

Run as a script, with `RAY_AUTH_*` in the environment: prints the head's address once both are up.
"""

from __future__ import annotations

import signal
import sys

from ray.cluster_utils import Cluster

# Ray takes 127.0.0.1 for another name of the machine's public address.
HEAD = "127.0.0.2"


def main(cpus: int) -> None:
    """Runs until it is terminated."""
    machine = {
        "num_cpus": cpus,
        "object_store_memory": 256 * 2**20,
    }
    cluster = Cluster(initialize_head=True, head_node_args=machine | {"node_ip_address": HEAD})
    second = cluster.add_node(**machine, node_ip_address="127.0.0.3")
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while (number := signal.sigwait(signals)) is not signal.SIGTERM:
        if number == signal.SIGUSR1:
            second.kill_raylet(check_alive=False)
            print("killed", flush=True)
        else:
            cluster.add_node(**machine, node_ip_address="127.0.0.4")
            print("joined", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
