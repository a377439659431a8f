"""A pool with its files in a bucket."""

import os
import signal
from dataclasses import replace

import pytest
import torch
import toy

from cluster import processes
from cluster.pool.test_sources import FREE, assert_as_alone
from cluster.test_sweep import Observer, everything
from condkd_ray.cluster.pool.actor import SyntheticPool, make_pool
from condkd_ray.cluster.pool.stores import PoolStore
from condkd_ray.core.samples import Codec
from condkd_ray.core.storage import Remote, files, locate
from condkd_ray.methods.memory import Latest
from condkd_ray.methods.memory.store import chunk_path, stored_chunks, to_arrays, write_chunk
from condkd_ray.trial.plan import PlannedTrial

CODEC = Codec("unit", toy.MEAN, toy.STD)
ROW = 64 + 8 + 8
"""Bytes of a sample."""


@pytest.fixture
def folder(bucket) -> Remote:
    return locate(bucket) / "chunks"


def test_chunks_beyond_the_limit_and_of_a_killed_pool_are_read_from_the_bucket(cluster, folder):
    import ray

    pool = make_pool(folder, 5 * ROW)
    store = PoolStore(CODEC, toy.NUM_CLASSES, pool, "key")
    parts = [toy.samples(3, seed=seed) for seed in range(4)]
    for part in parts[:3]:
        store.append(part)
    stats = ray.get(pool.stats.remote())
    assert (stats["bytes"], stats["spilled_bytes"]) == (9 * ROW, 6 * ROW)
    ray.kill(pool, no_restart=False)
    store.append(parts[3])
    labels = torch.cat([part.labels for part in parts])
    assert torch.equal(store.gather(torch.arange(12)).labels, labels)
    again = PoolStore(CODEC, toy.NUM_CLASSES, pool, "key")
    assert torch.equal(again.gather(torch.arange(12)).labels, labels)
    ray.get(pool.delete.remote("key"))
    assert files(folder / "key") == []
    ray.kill(pool)


def test_incomplete_files_of_a_crash_are_deleted(cluster, folder):
    arrays = to_arrays(CODEC.encode(toy.samples(6)))
    for start, stop in [(0, 3), (3, 6), (0, 6)]:
        write_chunk(chunk_path(folder / "key", start, stop), tuple(array[start:stop] for array in arrays))
    chunks = SyntheticPool(folder, 2**30).table("key").changed
    assert list(chunks) == [0]
    assert files(folder / "key") == stored_chunks(folder / "key")


@pytest.mark.slow
def test_a_killed_pool_and_a_killed_maker_do_not_change_the_numbers_of_sharing_trials(cluster, tmp_path, bucket):
    killed = {}

    def disturb(trial: PlannedTrial, metrics: dict) -> None:
        victim = {2: "SyntheticPool", 4: "ImplicitFunc"}.get(metrics["round"])
        if victim and victim not in killed:
            killed[victim] = processes.of_ray(victim)[0]
            os.kill(killed[victim], signal.SIGKILL)

    configs = {"a": replace(FREE, rounds=6), "b": replace(FREE, rounds=6, memory=Latest())}
    observed = Observer(disturb)
    assert observed.sweep(configs, tmp_path, "inversion", storage=locate(bucket), checkpoint_seconds=0)
    assert set(killed) == {"SyntheticPool", "ImplicitFunc"}
    assert_as_alone(observed.outcomes, configs)
    assert {path.rpartition("/")[2] for path in everything(locate(bucket))} == {"pool.json"}
