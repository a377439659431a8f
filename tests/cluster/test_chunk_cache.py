import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy

from condkd_ray.cluster.pool import ChunkCache, SyntheticPool, check_limit, chunk_bytes, default_limit, make_pool
from condkd_ray.cluster.stores import PoolStore
from condkd_ray.core.method import InputError
from condkd_ray.core.samples import Codec
from condkd_ray.methods.memory.store import JOIN_FROM, to_arrays

CODEC = Codec("unit", toy.MEAN, toy.STD)
ROW = 64 + 8 + 2 * toy.NUM_CLASSES
"""Bytes of an 8x8 image with label and logits."""


def arrays(count: int, seed: int = 0):
    return to_arrays(CODEC.encode(toy.samples(count, seed=seed)))


def on_disk(cache: ChunkCache, key: str) -> list[bool]:
    return [isinstance(placed.source, Path) for placed in cache.open(key).values()]


def test_beyond_the_limit_the_oldest_copies_go_and_their_files_stay(cluster, tmp_path):
    cache = ChunkCache(tmp_path, limit=25 * ROW)
    for number in range(4):
        cache.place("a", 10 * number, arrays(10, seed=number))
    assert on_disk(cache, "a") == [True, True, False, False]
    assert cache.sizes("a") == {"chunks": 4, "samples": 40, "bytes": 40 * ROW, "spilled_bytes": 20 * ROW}
    assert cache.shed == 20 * ROW
    cache.place("b", 0, arrays(10))
    assert on_disk(cache, "a") == [True, True, True, False]
    again = ChunkCache(tmp_path, limit=25 * ROW)
    assert on_disk(again, "a") == [True, True, False, False]


def test_a_store_reads_what_is_on_disk_alone_as_if_it_were_mapped(cluster, tmp_path):
    import ray

    pool = make_pool(tmp_path, 25 * ROW)
    store = PoolStore(CODEC, toy.NUM_CLASSES, pool, "key")
    parts = [toy.samples(10, seed=seed) for seed in range(6)]
    for part in parts:
        store.append(part)
    stats = ray.get(pool.stats.remote())
    assert stats["spilled_bytes"] == stats["shed"] == 40 * ROW
    found = store.gather(torch.arange(60))
    assert torch.equal(found.labels, torch.cat([part.labels for part in parts]))
    assert torch.equal(found.logits, torch.cat([part.logits for part in parts]).half().float())
    ray.kill(pool)


def test_neighbours_of_which_some_have_logits_are_joined_without_any(cluster, tmp_path):
    cache = ChunkCache(tmp_path, 10**6)
    for number in range(JOIN_FROM):
        whole = CODEC.encode(toy.samples(2, seed=number))
        cache.place("a", 2 * number, to_arrays(whole if number < 3 else whole.without_logits()))
    cache.join("a", 2 * JOIN_FROM)
    assert list(cache.open("a")) == [0]
    images, labels, logits = cache.read("a", 0)
    assert (len(images), logits.shape) == (2 * JOIN_FROM, (2 * JOIN_FROM, 0))
    assert labels.tolist() == [label for n in range(JOIN_FROM) for label in toy.samples(2, seed=n).labels.tolist()]
    assert cache.sizes("a")["bytes"] == 2 * JOIN_FROM * (64 + 8)


def test_the_pool_writes_down_what_it_holds(cluster, tmp_path):
    pool = SyntheticPool(tmp_path, 10**6)
    pool.append("key", 0, arrays(10))
    status = json.loads((tmp_path / "pool.json").read_text())
    assert status["limit"] == 10**6
    # The first write comes when a key is opened; what follows within a second is not told.
    assert [key["key"] for key in status["keys"]] == ["key"]
    described = pool.describe()[0]
    assert (described["samples"], described["readers"], described["bytes"]) == (10, 1, 10 * ROW)


def test_a_limit_under_a_rounds_images_is_refused(cluster):
    config, prepared = toy.toy_config(), toy.make_prepared()
    size = chunk_bytes(config, prepared)
    assert size == config.inversion.images_per_round * (ROW - 2 * toy.NUM_CLASSES)
    reads = replace(config, distiller=replace(config.distiller, augment=False))
    whole = {
        chunk_bytes(reads, prepared),
        chunk_bytes(config, prepared, "inversion"),
        chunk_bytes(config, prepared, "sweep"),
    }
    assert whole == {config.inversion.images_per_round * ROW}
    check_limit(size, [size])
    with pytest.raises(InputError, match=f"pool limit is '{size - 1} bytes'"):
        check_limit(size - 1, [size // 2, size])
    assert default_limit() > 10 * size
