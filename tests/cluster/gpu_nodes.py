"""A driver without GPUs on a cluster with a node that has two simulated ones; prints the hardware of its trials."""

from condkd_ray.cluster.connection import connect, private
from condkd_ray.cluster.hardware import trial_hardware


def main() -> None:
    from ray.cluster_utils import Cluster

    with private():
        cluster = Cluster()
        for gpus in (0, 2):
            cluster.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=80 * 2**20)
        with connect(cluster.address):
            print(trial_hardware(0.5), flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
