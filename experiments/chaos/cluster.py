"""A Ray cluster of several raylets on this machine, whose nodes can be lost and replaced."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chaos.processes import kill, titles
from condkd_ray.cluster.connection import private


class Machine:
    """A cluster on this machine: a head node, which is never lost, and nodes, which can be lost."""

    def __init__(self, cluster: Any, nodes: int, node_cpus: int) -> None:
        self.cluster, self._node_cpus = cluster, node_cpus
        self.address = str(cluster.address)
        self.nodes = [cluster.add_node(num_cpus=node_cpus) for _ in range(nodes)]

    def lose(self, which: int) -> None:
        """Kill all processes of a node at once."""
        node = self.nodes.pop(which)
        raylet = process_id(node, "raylet")
        for process in [raylet, *titles(raylet)]:
            kill(process)
        self.cluster.remove_node(node, allow_graceful=False)

    def grow(self) -> None:
        """Add a node."""
        self.nodes.append(self.cluster.add_node(num_cpus=self._node_cpus))


def process_id(node: Any, name: str) -> int:
    """Return the pid of a node's process, by Ray's name for it."""
    (found,) = node.all_processes[name]
    return found.process.pid


@contextmanager
def machine(nodes: int = 2, *, head_cpus: int = 0, node_cpus: int = 1) -> Iterator[Machine]:
    """Yield a private `Machine`; processes started inside the `with` block may connect to it.

    `nodes`: number of nodes besides the head. `head_cpus`, `node_cpus`: logical CPUs of the head and of each node.
    """
    with private():
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False})
        try:
            yield Machine(cluster, nodes, node_cpus)
        finally:
            cluster.shutdown()
