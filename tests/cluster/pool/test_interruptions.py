"""Calls of the pool that are cut off, repeated, or made by a process that should not run any more."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from cluster.pool.chunk_files import fill
from cluster.pool.test_chunks import CODEC, arrays
from condkd_ray.cluster.actors import WATCH, RetryError
from condkd_ray.cluster.pool.actor import SyntheticPool, make_pool
from condkd_ray.cluster.pool.chunks import HERE, write, write_unnamed
from condkd_ray.cluster.pool.round_log import NAME
from condkd_ray.cluster.pool.stores import FilledStore, PoolStore, SharedStore, SweepStore
from condkd_ray.core.chunk_files import JOIN_FROM, MissingSamplesError
from condkd_ray.core.storage import locate, move


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory) -> Iterator[Any]:
    import ray

    actor = make_pool(tmp_path_factory.mktemp("chunks"), 10**7)
    yield actor
    ray.kill(actor)


def open_store(pool: Any, key: str) -> PoolStore:
    return PoolStore(CODEC, toy.NUM_CLASSES, pool, key)


def labels(store: Any, seeds: list[int]) -> bool:
    """Return whether the store's samples after the first two are those of these seeds, two of each."""
    expected = torch.cat([toy.samples(2, seed=seed).labels for seed in seeds])
    return torch.equal(store.gather(torch.arange(2, 2 + len(expected))).labels, expected)


def test_a_repeated_call_does_not_drop_the_joined_chunk(pool, monkeypatch):
    store = open_store(pool, "repeated")
    for seed in range(JOIN_FROM):
        store.append(toy.samples(2, seed=seed))
    store.commit()
    store.append(toy.samples(2, seed=JOIN_FROM))
    time.sleep(1)  # the join ends
    store.drop(torch.tensor([0, 1]))
    store.commit()
    fetched, first = PoolStore._fetched, []

    def fail_once(self, chunks):
        if not first:
            first.append(1)
            raise RetryError("a copy is lost")
        return fetched(self, chunks)

    monkeypatch.setattr(PoolStore, "_fetched", fail_once)
    store.append(toy.samples(2, seed=JOIN_FROM + 1))
    assert first
    assert labels(store, list(range(1, JOIN_FROM + 2)))


def test_rounds_that_are_made_again_do_not_drop_the_joined_chunk(pool):
    store = FilledStore(CODEC, toy.NUM_CLASSES, pool, "cleared")
    for seed in range(JOIN_FROM + 1):
        fill(pool, CODEC, "cleared", 2 * seed, toy.samples(2, seed=seed))
    store.refresh()
    for _ in range(JOIN_FROM):
        store.append(store.peek(2))
    store.commit()
    store.refresh()  # the join begins
    store.drop(torch.tensor([0, 1]))
    store.commit()
    time.sleep(1)
    store.clear_ahead()
    fill(pool, CODEC, "cleared", 2 * JOIN_FROM, toy.samples(2, seed=50))
    store.refresh()
    assert labels(store, [*range(1, JOIN_FROM), 50])


def test_a_file_that_a_killed_process_left_is_never_used(pool):
    import ray

    store, folder = open_store(pool, "left"), Path(ray.get(pool.folder.remote())) / "left"
    for seed in range(4):
        store.append(toy.samples(2, seed=seed))
    # The process is killed after it has written round 4, and before it calls the pool.
    write(folder, 8, arrays(2))
    again = open_store(pool, "left")
    again.restore(2, torch.arange(2))
    again.append(toy.samples(2, seed=1))
    ray.kill(pool, no_restart=False)
    again.append(toy.samples(2, seed=2))
    assert again.num_ids == 6
    assert labels(again, [1, 2])


def test_rounds_of_a_process_that_should_not_run_any_more_are_ignored(pool):
    stale = open_store(pool, "stale")
    for seed in range(4):
        stale.append(toy.samples(2, seed=seed))
    store = open_store(pool, "stale")
    store.restore(2, torch.arange(2))
    stale.append(toy.samples(2, seed=4))
    store.append(toy.samples(2, seed=1))
    assert store.num_ids == 4
    store.append(toy.samples(2, seed=2))
    assert labels(store, [1, 2])


def contribute(pool: SyntheticPool, folder: Path, round: int, trial: str) -> list[int]:
    return pool.contribute("s", round, trial, **write_unnamed(folder / "s", arrays(2)), caller=HERE).sizes


def test_a_trial_whose_rounds_the_log_has_lost_starts_again(cluster, tmp_path):
    pool = SyntheticPool(tmp_path, 10**7)
    for round in range(3):
        for trial in "ab":
            contribute(pool, tmp_path, round, trial)
    log = tmp_path / "s" / NAME
    log.write_text("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    again = SyntheticPool(tmp_path, 10**7)
    assert contribute(again, tmp_path, 1, "b") == [2]
    with pytest.raises(MissingSamplesError, match="round 3 of s follows a missing one: its log has 1"):
        contribute(again, tmp_path, 3, "a")
    assert contribute(again, tmp_path, 1, "a") == [2, 2, 2]


def test_a_shared_round_after_missing_ones_is_refused(pool):
    store = SharedStore(CODEC, toy.NUM_CLASSES, pool, "gap", reader="a")
    store.deliver(0, toy.samples(2), {})
    with pytest.raises(MissingSamplesError, match="round 2 of gap follows a missing one"):
        store.take(2)
    with pytest.raises(MissingSamplesError, match="round 2 of gap follows a missing one"):
        store.deliver(2, toy.samples(2), {})


def test_a_restarted_pool_in_a_bucket_takes_the_next_round(cluster, bucket):
    import ray

    pool = make_pool(locate(bucket) / "chunks", 10**7)
    store = SweepStore(CODEC, toy.NUM_CLASSES, pool, "s", reader="a")
    for round in range(3):
        assert store.contribute(round, toy.samples(2, seed=round)) == [2]
        store.append(store.peek(2))
        ray.kill(pool, no_restart=False)
    assert labels(store, [1, 2])
    ray.kill(pool)


def test_a_file_that_is_missing_in_a_bucket_cannot_be_renamed(bucket):
    place = locate(bucket)
    with pytest.raises(FileNotFoundError, match="missing"):
        move(place / "missing", place / "there")


def test_a_trial_fetches_only_chunks_that_it_needs(pool, monkeypatch):
    maker, reader = (SharedStore(CODEC, toy.NUM_CLASSES, pool, "needed", reader=name) for name in "ab")
    fetched, sizes = SharedStore._fetched, []
    monkeypatch.setattr(
        SharedStore,
        "_fetched",
        lambda self, chunks: sizes.extend(p.size for p in chunks.values()) or fetched(self, chunks),
    )
    for round in range(3 * JOIN_FROM):
        maker.deliver(round, toy.samples(2, seed=round), {})
        maker.append(maker.peek(2))
        maker.commit()
        time.sleep(0.02)
    sizes.clear()
    for round in range(3 * JOIN_FROM):
        reader.take(round)
        reader.drop(torch.arange(reader.num_ids))
        reader.append(reader.peek(2))
        reader.commit()
    before = sum(sizes)
    for round in range(3 * JOIN_FROM, 3 * JOIN_FROM + 4):
        maker.deliver(round, toy.samples(2, seed=round), {})
        reader.take(round)
        reader.drop(torch.arange(reader.num_ids))
        reader.append(reader.peek(2))
        reader.commit()
        time.sleep(0.3)
    # Only new rounds: not the chunks of dropped samples that are joined meanwhile.
    assert sum(sizes) - before <= 2 * 4 * 2


def test_the_wait_of_a_repeated_call_is_counted_once(pool, monkeypatch):
    store = open_store(pool, "watched")
    placed = {0: type("Placed", (), {"source": object()})()}
    monkeypatch.setattr("condkd_ray.cluster.pool.stores._copies", lambda refs: [None])
    monkeypatch.setattr("ray.get", lambda ref: time.sleep(0.2))
    with WATCH.trial():
        with WATCH.running(), pytest.raises(RetryError, match="copies of 1 chunks of watched are lost"):
            store._fetched(placed)
        assert 0.2 <= WATCH.seconds < 0.35
