"""A driver on two nodes with separate working folders; checks which folders and stores both nodes can use.

usage: two_nodes.py FOLDER URI...     prints a line for each URI: "fine", or the error message
"""

import os
import sys
from pathlib import Path

from condkd_ray.cluster.connection import connect, private
from condkd_ray.cluster.storage_check import check_reach
from condkd_ray.core.method import InputError
from condkd_ray.core.storage import locate


def main() -> None:
    from ray.cluster_utils import Cluster

    folder = Path(sys.argv[1])
    with private():
        cluster = Cluster()
        for name in ("first", "second"):
            (folder / name).mkdir()
            os.chdir(folder / name)
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        os.chdir(folder / "first")
        with connect(cluster.address):
            for uri in sys.argv[2:]:
                try:
                    check_reach(locate(uri))
                    print("fine", flush=True)
                except InputError as error:
                    print(error, flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
