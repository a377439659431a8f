"""Logs how much a cluster has spilled to disk, just after each of its nodes except the head was lost.

usage: losing_nodes.py FOLDER
"""

import sys
from pathlib import Path

from chaos.cluster import machine

from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.cluster.pool.limits import log_spilling


def main(folder: Path) -> None:
    with machine() as made, connect(made.address):
        pool = make_pool(folder, 10**6)
        for _ in range(2):
            made.lose(0)
            log_spilling(pool, 10**6)
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
