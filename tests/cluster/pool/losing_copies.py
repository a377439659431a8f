"""Reads a key's samples after the node was lost into whose object store their copies had been put.

usage: losing_copies.py FOLDER
"""

import sys
from pathlib import Path

import ray
import torch
import toy
from chaos.cluster import machine

from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.cluster.pool.chunks import Caller, write
from condkd_ray.cluster.pool.stores import PoolStore
from condkd_ray.core.samples import Codec
from condkd_ray.methods.memory.store import to_arrays


def main(folder: Path) -> None:
    """Lose both nodes except the head, one after the other: the pool may run on one of them."""
    code, parts = Codec("unit", toy.MEAN, toy.STD), [toy.samples(5, seed=seed) for seed in range(4)]
    with machine() as made, connect(made.address):
        pool, nodes = make_pool(folder, 10**6), [node.node_id for node in made.nodes]
        for number, part in enumerate(parts):
            written = write(folder / "key", 5 * number, to_arrays(code.encode(part)))
            table = ray.get(pool.append.remote("key", 5 * number, written, Caller(nodes[number % 2])))
            ray.get([placed.source for placed in table.changed.values()])
        for _ in nodes:
            made.lose(0)
            store = PoolStore(code, toy.NUM_CLASSES, pool, "key")
            assert torch.equal(store.gather(torch.arange(20)).labels, torch.cat([part.labels for part in parts]))
        ray.kill(pool)
    print("all samples were there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
