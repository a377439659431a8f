import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toy

from cluster import processes
from cluster.pool.chunk_files import append, fill
from condkd_ray.cluster.pool import actor as module
from condkd_ray.cluster.pool.actor import SILENCE_SECONDS, SyntheticPool, make_pool
from condkd_ray.cluster.pool.chunks import HERE, Caller, ChunkCache, write
from condkd_ray.cluster.pool.stores import FilledStore, PoolStore
from condkd_ray.core.chunk_files import JOIN_FROM, Arrays, stored_chunks
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Codec, Samples
from condkd_ray.methods.memory import Growing
from condkd_ray.methods.memory.store import to_arrays
from condkd_ray.trial.loop import run_round, start
from condkd_ray.trial.synthesis import codec

CODEC = Codec("unit", toy.MEAN, toy.STD)
LIMIT = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("chunks")


@pytest.fixture(scope="module")
def pool(cluster, folder) -> Iterator:
    import ray

    actor = make_pool(folder, LIMIT)
    yield actor
    ray.kill(actor)


def open_store(pool, key: str) -> PoolStore:
    return PoolStore(CODEC, toy.NUM_CLASSES, pool, key)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(folder: Path, key: str) -> list[str]:
    return [path.stem for path in stored_chunks(folder / key)]


def test_a_chunk_overwritten_in_the_pool_changes_the_loss_of_the_next_round(pool):

    def second_loss(key: str, overwrite: bool) -> float:
        prepared = toy.make_prepared()
        config = toy.toy_config(distiller=toy.toy_config().distiller.__class__(steps=4, batch=16))
        store = PoolStore(codec(config, prepared.teacher), toy.NUM_CLASSES, pool, key)
        state = start(config, prepared)
        run_round(config, prepared, state, store)
        if overwrite:
            black = Samples(torch.full((16, 1, 8, 8), -1.0), torch.zeros(16, dtype=torch.int64), torch.zeros(16, 4))
            append(pool, CODEC, key, 0, black)
        return run_round(config, prepared, state, store)["kd/loss"]

    plain = second_loss("plain", overwrite=False)
    assert second_loss("again", overwrite=False) == plain
    assert second_loss("black", overwrite=True) != plain


def test_an_overwritten_chunk_is_counted_by_its_new_classes(pool):

    store = open_store(pool, "classes")
    store.append(toy.sure(0, 0, 1))
    store.drop(torch.tensor([0]))
    append(pool, CODEC, "classes", 0, toy.sure(2, 2, 2))
    store.append(toy.sure(3))
    assert store.class_counts.tolist() == [0, 0, 2, 1]


def test_private_memory_of_a_trial_does_not_grow_with_rounds(pool):
    store = PoolStore(Codec("unit", (0.5,) * 3, (0.25,) * 3), toy.NUM_CLASSES, pool, "large")
    memory, teacher, streams, rng = Growing(), toy.make_teacher(), Streams(0), torch.Generator().manual_seed(0)
    state = memory.init(teacher, streams)
    private = {}
    for number in range(45):
        images = torch.randn(512, 3, 32, 32, generator=rng)
        fresh = Samples(images, torch.zeros(512, dtype=torch.int64), torch.zeros(512, 4))
        memory.add(state, store, fresh, teacher=teacher, rng=streams)
        store.gather(state.ids[torch.randint(len(state.ids), (256,), generator=rng)])
        store.commit()
        private[number] = processes.private_bytes()
    assert store.num_bytes > 70e6
    # Rounds 5 to 44 put 64 MB into the pool.
    assert private[44] - private[5] < 8e6


def test_a_draw_makes_no_remote_call(pool, monkeypatch):
    import ray

    store = open_store(pool, "silent")
    ids = store.append(toy.samples(20))
    monkeypatch.setattr(ray, "get", None)
    store.gather(ids)
    store.drop(ids[:4])
    store.commit()


def test_small_sealed_chunks_are_joined_in_one_file(pool, folder):
    import ray

    store = open_store(pool, "small")
    for seed in range(15):
        store.append(toy.samples(2, seed=seed))
    store.commit()
    store.append(toy.samples(2, seed=15))
    store.commit()
    assert len(files(folder, "small")) == 16
    store.append(toy.samples(2, seed=16))
    eventually(lambda: ray.get(pool.tend.remote("small")) and len(files(folder, "small")) == 2)
    store.append(toy.samples(2, seed=17))
    assert files(folder, "small") == [f"{start:010d}-{stop:010d}" for start, stop in ((0, 32), (32, 34), (34, 36))]
    labels = torch.cat([toy.samples(2, seed=seed).labels for seed in range(18)])
    assert torch.equal(store.gather(torch.arange(36)).labels, labels)


def test_chunks_that_no_checkpoint_covers_are_not_joined(pool, folder):
    store = open_store(pool, "open")
    for seed in range(20):
        store.append(toy.samples(2, seed=seed))
    assert len(files(folder, "open")) == 20
    store.restore(10, torch.arange(10))
    assert len(files(folder, "open")) == 5


def test_dropped_chunks_are_deleted_in_the_round_after_the_commit(pool, folder):
    store = open_store(pool, "dropped")
    store.drop(store.append(toy.samples(2)))
    store.append(toy.samples(2))
    assert len(files(folder, "dropped")) == 2
    store.commit()
    store.append(toy.samples(2))
    assert files(folder, "dropped") == ["0000000002-0000000004", "0000000004-0000000006"]


def test_a_forgotten_key_leaves_no_chunks_and_no_files(pool, folder):
    import ray

    open_store(pool, "forgotten").append(toy.samples(2))
    before = ray.get(pool.stats.remote())
    ray.get(pool.delete.remote("forgotten"))
    after = ray.get(pool.stats.remote())
    difference = {name: before[name] - after[name] for name in before}
    assert difference == {
        "keys": 1,
        "chunks": 1,
        "samples": 2,
        "bytes": 2 * (64 + 8 + 8),
        "spilled_bytes": 0,
        "shed": 0,
    }
    assert not (folder / "forgotten").exists()
    assert open_store(pool, "forgotten").num_ids == 0


def test_a_truncated_chunk_keeps_its_first_samples(pool, folder):
    import ray

    store = open_store(pool, "cut")
    samples = toy.samples(6)
    store.append(samples)
    ray.get(pool.truncate.remote("cut", 4))
    assert files(folder, "cut") == ["0000000000-0000000004"]
    assert torch.equal(open_store(pool, "cut").gather(torch.arange(4)).labels, samples.labels[:4])


def test_incomplete_files_of_a_crash_are_deleted(cluster, tmp_path):
    import ray

    first = SyntheticPool(tmp_path, LIMIT)
    arrays = to_arrays(CODEC.encode(toy.samples(6)))
    for first_id in (0, 3):
        part = tuple(array[first_id : first_id + 3] for array in arrays)
        first.append("key", first_id, write(tmp_path / "key", first_id, part))
    SyntheticPool(tmp_path, LIMIT).append("other", 0, write(tmp_path / "other", 0, arrays))
    os.link(tmp_path / "other" / "0000000000-0000000006.arrow", tmp_path / "key" / "0000000000-0000000006.arrow")
    (tmp_path / "key" / ".x.arrow.7.partial").touch()
    table = SyntheticPool(tmp_path, LIMIT).table("key")
    version, chunks = table.version, table.changed
    assert list(chunks) == [0]
    assert torch.equal(torch.from_numpy(ray.get(chunks[0].source)[1].copy()), toy.samples(6).labels)
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["0000000000-0000000006.arrow"]
    assert SyntheticPool(tmp_path, LIMIT).table("key", Caller(have=version)).whole


@pytest.mark.parametrize("way", ["ray.kill", "SIGKILL"])
def test_a_store_continues_after_its_pool_was_killed(pool, way):
    import ray

    store = open_store(pool, way)
    parts = [toy.samples(3, seed=seed) for seed in range(3)]
    store.append(parts[0])
    ray.get(pool.stats.remote())
    if way == "SIGKILL":
        for pid in processes.of_ray("SyntheticPool"):
            os.kill(pid, signal.SIGKILL)
    else:
        ray.kill(pool, no_restart=False)
    assert torch.equal(store.gather(torch.arange(3)).labels, parts[0].labels)
    store.append(parts[1])
    store.append(parts[2])
    assert torch.equal(store.gather(torch.arange(9)).labels, torch.cat([part.labels for part in parts]))
    assert open_store(pool, way).num_ids == 9


def put_round(pool, key: str, number: int, seed: int) -> None:
    fill(pool, CODEC, key, 4 * number, toy.samples(4, seed=seed))


def test_rounds_of_producers_count_once_the_trial_appends_them(pool, folder):
    store = FilledStore(CODEC, toy.NUM_CLASSES, pool, "filled")
    put_round(pool, "filled", 1, seed=1)
    put_round(pool, "filled", 0, seed=0)
    put_round(pool, "filled", 0, seed=7)
    store.refresh()
    assert (store.num_ids, store.class_counts.sum(), store.num_bytes) == (0, 0, 0)
    for number in range(2):
        seen = store.peek(4)
        assert torch.equal(seen.labels, toy.samples(4, seed=number).labels)
        assert store.append(seen).tolist() == list(range(4 * number, 4 * number + 4))
    put_round(pool, "filled", 2, seed=2)
    store.drop(torch.arange(4))
    store.commit()
    store.refresh()
    assert store.num_ids == 8
    assert files(folder, "filled") == ["0000000004-0000000008", "0000000008-0000000012"]
    again = FilledStore(CODEC, toy.NUM_CLASSES, pool, "filled")
    again.restore(8, torch.arange(4, 8))
    assert files(folder, "filled") == ["0000000004-0000000008"]
    assert torch.equal(again.gather(torch.arange(4, 8)).labels, toy.samples(4, seed=1).labels)
    assert torch.equal(again.class_counts, store.class_counts)


def test_rounds_that_a_trial_has_not_appended_can_be_deleted_and_made_again(pool, folder):
    store = FilledStore(CODEC, toy.NUM_CLASSES, pool, "cleared")
    for number in range(3):
        put_round(pool, "cleared", number, seed=number)
    store.refresh()
    store.append(store.peek(4))
    store.clear_ahead()
    assert files(folder, "cleared") == ["0000000000-0000000004"]
    put_round(pool, "cleared", 1, seed=9)
    store.refresh()
    assert torch.equal(store.peek(4).labels, toy.samples(4, seed=9).labels)


ROW = 64 + 8 + 2 * toy.NUM_CLASSES
"""Bytes of an 8x8 image with label and logits."""


def arrays(count: int, seed: int = 0):
    return to_arrays(CODEC.encode(toy.samples(count, seed=seed)))


def place(cache: ChunkCache, key: str, start: int, content: Arrays, caller: Caller = HERE) -> None:
    cache.place(key, start, write(cache.folder / key, start, content), caller)


def on_disk(cache: ChunkCache, key: str) -> list[bool]:
    return [isinstance(placed.source, Path) for placed in cache.open(key, HERE).values()]


def test_beyond_the_limit_the_oldest_chunks_leave_memory_and_stay_on_disk(cluster, tmp_path):
    cache = ChunkCache(tmp_path, limit=25 * ROW)
    for number in range(4):
        place(cache, "a", 10 * number, arrays(10, seed=number))
    assert on_disk(cache, "a") == [True, True, False, False]
    assert cache.sizes("a") == {"chunks": 4, "samples": 40, "bytes": 40 * ROW, "spilled_bytes": 20 * ROW}
    assert cache.shed == 20 * ROW
    place(cache, "b", 0, arrays(10))
    assert on_disk(cache, "a") == [True, True, True, False]
    again = ChunkCache(tmp_path, limit=25 * ROW)
    assert on_disk(again, "a") == [True, True, False, False]


def test_a_store_reads_chunks_that_are_only_on_disk(cluster, tmp_path):
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


def join(cache: ChunkCache, key: str, sealed: int) -> None:
    """Have the chunks joined, and wait until they are."""
    cache.join(key, sealed, HERE)
    eventually(lambda: cache.join(key, sealed, HERE) or len(cache.open(key, HERE)) == 1)


def test_neighbouring_chunks_are_joined_without_logits_if_one_has_none(cluster, tmp_path):
    import ray

    cache = ChunkCache(tmp_path, 10**6)
    for number in range(JOIN_FROM):
        whole = CODEC.encode(toy.samples(2, seed=number))
        place(cache, "a", 2 * number, to_arrays(whole if number < 3 else whole.without_logits()))
    join(cache, "a", 2 * JOIN_FROM)
    ((start, placed),) = cache.open("a", HERE).items()
    assert start == 0
    images, labels, logits = ray.get(placed.source)
    assert (len(images), logits.shape) == (2 * JOIN_FROM, (2 * JOIN_FROM, 0))
    assert labels.tolist() == [label for n in range(JOIN_FROM) for label in toy.samples(2, seed=n).labels.tolist()]
    assert cache.sizes("a")["bytes"] == 2 * JOIN_FROM * (64 + 8)


def test_the_pool_writes_its_contents_to_a_status_file(cluster, tmp_path):
    pool = SyntheticPool(tmp_path, 10**6)
    pool.append("key", 0, write(tmp_path / "key", 0, arrays(10)))
    eventually(lambda: (tmp_path / "pool.json").is_file())
    status = json.loads((tmp_path / "pool.json").read_text())
    assert status["limit"] == 10**6
    # The file is first written when a key is opened; changes within the next second are not written.
    assert [key["key"] for key in status["keys"]] == ["key"]
    described = pool.describe()[0]
    assert (described["samples"], described["readers"], described["bytes"]) == (10, 1, 10 * ROW)


def test_one_claimant_holds_a_key_until_it_is_released(tmp_path):
    pool = SyntheticPool(tmp_path, 0)
    assert pool.claim("k", "a")
    assert pool.claim("k", "a")
    assert not pool.claim("k", "b")
    assert pool.claim("other", "b")
    pool.release("k", "b")
    assert pool.maker("k") == "a"
    pool.release("k", "a")
    assert pool.maker("k") == ""
    assert pool.claim("k", "b")


def test_a_claimant_without_a_heartbeat_loses_the_key(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pool = SyntheticPool(tmp_path, 0)
    assert pool.claim("k", "a")
    now[0] += SILENCE_SECONDS - 1
    assert not pool.claim("k", "b")
    assert pool.claim("k", "a")  # a heartbeat
    now[0] += SILENCE_SECONDS - 1
    assert not pool.claim("k", "b")
    now[0] += 2
    assert pool.claim("k", "b")
    assert not pool.claim("k", "a")
    pool.release("k", "a")
    assert pool.maker("k") == "b"
