"""The contract of all stores: the same ids, samples (bit for bit), counts and errors.

Each store is tested with samples in this machine's memory, and on a device (here the CPU) with memory for all samples
or only for a few.
"""

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import toy
from cluster.pool.chunk_files import fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from methods.memory.rounds import assert_alike, draws_without_waiting, waiting_is_an_error

from condkd_ray.core.chunk_files import MissingSamplesError
from condkd_ray.core.samples import Codec, PixelSpace, unseen
from condkd_ray.methods.memory import LocalStore, Store
from condkd_ray.methods.memory import store as module
from condkd_ray.methods.memory.chunk_table import ChunkTable
from condkd_ray.methods.memory.device_rows import DeviceRows

Make = Callable[..., Store]
ROOM = {"device": 2**30, "little room": 500}
"""Bytes of samples on the device; 500 are five to seven samples of the toy world."""


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory) -> Iterator[Any]:
    import ray

    from condkd_ray.cluster.pool.actor import make_pool

    actor = make_pool(tmp_path_factory.mktemp("pool"), 2**30)
    yield actor
    ray.kill(actor)


@pytest.fixture(params=["host", *ROOM])
def rows(request, monkeypatch) -> str:
    """The place of the samples: host memory, or a device with much or little memory."""
    if request.param in ROOM:
        place_samples(monkeypatch, ROOM[request.param])
    return request.param


def place_samples(monkeypatch, room: int | None) -> None:
    """Make stores keep samples on a device with `room` bytes, or in this machine's memory if `room` is None."""
    made = ChunkTable if room is None else partial(DeviceRows, torch.device("cpu"), room)
    monkeypatch.setattr(module, "rows_on", lambda device, limit: made())


@pytest.fixture(params=["memory", "folder", pytest.param("pool", marks=pytest.mark.ray)])
def opened(request, tmp_path_factory) -> Callable[[], Make]:
    """A function that makes a new place for chunks at each call and returns a function that opens a store there."""
    if request.param == "pool":
        pool = request.getfixturevalue("pool")
        from condkd_ray.cluster.pool.stores import PoolStore

        def pooled() -> Make:
            key = secrets.token_hex(4)
            return lambda *codec: PoolStore(code(*codec), toy.NUM_CLASSES, pool, key)

        return pooled

    def local() -> Make:
        folder = tmp_path_factory.mktemp("chunks") if request.param == "folder" else None
        return lambda *codec: LocalStore(code(*codec), toy.NUM_CLASSES, folder)

    return local


def code(space: PixelSpace = "unit", logits: bool = True) -> Codec:
    return Codec(space, toy.MEAN, toy.STD, logits)


@pytest.fixture
def make(opened, rows) -> Make:
    """A function that opens a store. Further calls open the same chunks, as after a crash, except for `memory`."""
    open_store = opened()
    return lambda space="unit", logits=True: open_store(space, logits)


def equal(store: Store, ids: torch.Tensor, expected) -> bool:
    found, decoded = store.gather(ids), store.codec.decode(store.codec.encode(expected))
    return all(
        torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
        for a, b in zip(vars(found).values(), vars(decoded).values(), strict=True)
    )


@pytest.mark.parametrize("space", ["unit", "model"])
def test_gather_returns_decoded_samples_in_the_order_of_the_ids(make, space):
    store = make(space)
    first, second = toy.samples(5, seed=1), toy.samples(3, seed=2)
    assert store.append(first).tolist() == [0, 1, 2, 3, 4]
    assert store.append(second).tolist() == [5, 6, 7]
    assert store.num_ids == 8
    assert equal(store, torch.arange(5), first)
    assert equal(store, torch.tensor([6]), second[torch.tensor([1])])
    mixed = torch.tensor([7, 0, 0, 6, 4])
    rows = [(second, 2), (first, 0), (first, 0), (second, 1), (first, 4)]
    assert torch.equal(store.gather(mixed).labels, torch.stack([part.labels[row] for part, row in rows]))
    assert equal(store, torch.tensor([7, 5]), second[torch.tensor([2, 0])])
    assert len(store.gather(mixed[:0])) == 0


def test_writing_to_gathered_samples_does_not_change_the_store(make):
    store = make()
    samples = toy.samples(4)
    store.append(samples)
    gathered = store.gather(torch.arange(4))
    for tensor in vars(gathered).values():
        tensor.zero_()
    assert equal(store, torch.arange(4), samples)


def test_an_empty_append_gives_no_ids(make):
    store = make()
    assert store.append(toy.samples(0)).tolist() == []
    assert store.num_ids == 0
    assert store.append(toy.samples(2)).tolist() == [0, 1]


def test_counts_and_bytes_are_those_of_live_samples(make):
    store = make()
    assert store.class_counts.tolist() == [0, 0, 0, 0]
    assert store.num_bytes == 0
    store.append(toy.sure(0, 1, 1, 3))
    store.append(toy.sure(3, 3))
    assert store.class_counts.tolist() == [1, 2, 0, 3]
    row = 64 + 8 + 2 * toy.NUM_CLASSES
    assert store.num_bytes == 6 * row
    store.drop(torch.tensor([4, 1, 1]))
    store.drop(torch.tensor([1, 77, -1]))
    assert store.class_counts.tolist() == [1, 1, 0, 2]
    store.commit()
    assert store.num_bytes == 4 * row
    assert store.class_counts.dtype == torch.int64


def test_without_logits_a_store_keeps_and_restores_images_and_labels(make, request):
    store, parts = make(logits=False), [unseen(toy.samples(4, seed=seed).images, torch.arange(4)) for seed in range(20)]
    for part in parts:
        store.append(part)
        store.commit()
    assert store.num_bytes == 80 * (64 + 8)
    assert store.class_counts.tolist() == [0, 0, 0, 0]
    if "memory-" not in request.node.name:
        store = make(logits=False)
        store.restore(80, torch.arange(80))
    for number, part in enumerate(parts):
        assert equal(store, torch.arange(4 * number, 4 * number + 4), part)


def test_logits_that_a_trial_does_not_read_are_not_loaded(make, request):
    if "memory-" in request.node.name:
        pytest.skip("this store does not outlive its process")
    store, old = make(), [toy.samples(4, seed=seed) for seed in range(10)]
    for part in old:
        store.append(part)
    store = make(logits=False)
    store.restore(40, torch.arange(40))
    for number in range(20):
        store.append(unseen(old[0].images, torch.full((4,), number % 4)))
        store.commit()
    assert store.num_bytes == 120 * (64 + 8)
    assert equal(store, torch.arange(4, 8), unseen(old[1].images, old[1].labels))
    assert store.gather(torch.tensor([116, 3])).labels.tolist() == [3, int(old[0].labels[3])]


def test_unknown_ids_raise_a_key_error(make):
    store = make()
    with pytest.raises(KeyError):
        store.gather(torch.tensor([0]))
    store.append(toy.samples(4))
    for bad in (4, -1, 1000):
        with pytest.raises(KeyError, match=str(bad)):
            store.gather(torch.tensor([0, bad]))


def test_dropped_chunks_are_deleted_by_a_commit_and_not_before(make):
    store = make()
    first, second = toy.samples(3, seed=1), toy.samples(3, seed=2)
    store.drop(store.append(first))
    store.append(second)
    assert equal(store, torch.arange(3), first)
    store.commit()
    with pytest.raises(KeyError):
        store.gather(torch.tensor([0]))
    assert equal(store, torch.tensor([3, 4, 5]), second)
    assert store.append(first).tolist() == [6, 7, 8]


def test_many_small_chunks_give_the_same_samples(make):
    store = make()
    parts = [toy.samples(3, seed=seed) for seed in range(40)]
    for part in parts:
        store.append(part)
        store.commit()
    assert store.num_ids == 120
    for number, part in enumerate(parts):
        assert equal(store, torch.arange(3 * number, 3 * number + 3), part)
    store.drop(torch.arange(60))
    store.commit()
    assert equal(store, torch.arange(117, 120), parts[-1])
    assert int(store.class_counts.sum()) == 60


def test_restore_returns_a_store_to_its_checkpoint(make):
    store = make()
    parts = [toy.sure(0, 1, 2, 3) for _ in range(3)]
    store.append(parts[0])
    store.append(parts[1])
    num_ids, live = store.num_ids, torch.tensor([1, 2, 3, 4, 5])
    store.append(parts[2])
    store.drop(torch.arange(8))
    store.restore(num_ids, live)
    assert store.num_ids == 8
    assert store.class_counts.tolist() == [1, 2, 1, 1]
    assert equal(store, torch.arange(4, 8), parts[1])
    with pytest.raises(KeyError):
        store.gather(torch.tensor([8]))
    again = toy.samples(4, seed=9)
    assert store.append(again).tolist() == [8, 9, 10, 11]
    assert equal(store, torch.arange(8, 12), again)


def test_restore_rejects_a_checkpoint_whose_samples_are_missing(make):
    store = make()
    store.append(toy.samples(4))
    with pytest.raises(MissingSamplesError, match="after 8 samples"):
        store.restore(8, torch.tensor([1, 6]))
    store.restore(8, torch.tensor([1]))
    assert store.append(toy.samples(2)).tolist() == [8, 9]


def test_a_crash_after_a_checkpoint_loses_none_of_its_samples(make, request):
    store = make()
    if "memory-" in request.node.name:
        pytest.skip("this store does not outlive its process")
    kept = [toy.samples(4, seed=seed) for seed in range(20)]
    for part in kept:
        store.append(part)
    store.commit()
    store.drop(torch.arange(8))
    store.append(toy.samples(4, seed=99))
    # The process dies here: a drop is not committed, and an append is not in the checkpoint.
    store = make()
    store.restore(80, torch.arange(80))
    assert store.num_ids == 80
    for number, part in enumerate(kept):
        assert equal(store, torch.arange(4 * number, 4 * number + 4), part)


class StoreModel:
    """A store together with a plain dictionary of the live samples that it must contain, by id."""

    def __init__(self, open_store: Callable[[], Store], lasts: bool) -> None:
        self.open_store, self.lasts, self.store = open_store, lasts, open_store()
        self.held: dict[int, torch.Tensor] = {}
        self.kept = (0, dict(self.held))

    def append(self, count: int) -> None:
        fresh = toy.samples(count, seed=self.store.num_ids)
        seen = self.store.codec.decode(self.store.codec.encode(fresh)).images
        self.held |= dict(zip(self.store.append(fresh).tolist(), seen, strict=True))

    def drop(self, share: float) -> None:
        """Drop this share of the live samples, the oldest, and every third of the rest."""
        ids = sorted(self.held)
        gone = {*ids[: int(share * len(ids))], *ids[::3]}
        self.store.drop(torch.tensor(sorted(gone), dtype=torch.int64))
        self.held = {id: image for id, image in self.held.items() if id not in gone}

    def commit(self, _: int) -> None:
        self.kept = (self.store.num_ids, dict(self.held))
        self.store.commit()

    def restore(self, anew: int) -> None:
        """Restore the last checkpoint in this store, or in a new one if `anew` is odd and chunks are persistent."""
        if anew % 2 and self.lasts:
            self.store = self.open_store()
        num_ids, self.held = self.kept[0], dict(self.kept[1])
        self.store.restore(num_ids, torch.tensor(sorted(self.held), dtype=torch.int64))

    def seen(self, rng: torch.Generator) -> list[Any]:
        """Return counts, bytes, and all values of a draw that contains each live sample."""
        assert self.store.num_bytes == len(self.held) * (64 + 8 + 2 * toy.NUM_CLASSES)
        found = [self.store.num_ids, self.store.class_counts.tolist(), self.store.num_bytes]
        if not self.held:
            return found
        ids = torch.tensor(sorted(self.held))
        ids = torch.cat([ids, ids[torch.randint(len(ids), (5,), generator=rng)]])
        ids = ids[torch.randperm(len(ids), generator=rng)]
        drawn = self.store.gather(ids)
        assert torch.equal(drawn.images, torch.stack([self.held[id] for id in ids.tolist()]))
        return [*found, *(column.tolist() for column in vars(drawn).values())]


DONE = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("drop"), st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.sampled_from(["commit", "restore"]), st.integers(0, 1)),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.lists(DONE, min_size=5, max_size=20), room=st.sampled_from([100, 500, 1500, 2**30]))
def test_device_rows_and_chunks_give_equal_results_for_any_sequence_of_calls(opened, request, done, room):
    lasts, seen = "memory" not in request.node.name, []
    for place in (None, room):
        with pytest.MonkeyPatch.context() as patch:
            place_samples(patch, place)
            model, rng = StoreModel(opened(), lasts), torch.Generator().manual_seed(0)
            seen.append([])
            for verb, amount in done:
                getattr(model, verb)(amount)
                seen[-1].append(model.seen(rng))
    assert seen[0] == seen[1]


@pytest.mark.ray
def test_a_trial_reads_its_producers_rounds_from_each_place(pool, rows):

    from condkd_ray.cluster.pool.stores import FilledStore

    key = f"filled {rows}"
    parts = [toy.samples(4, seed=seed) for seed in range(4)]
    store = FilledStore(code(), toy.NUM_CLASSES, pool, key)
    for number, part in enumerate(parts):
        fill(pool, code(), key, 4 * number, part)
    store.refresh()
    for number, part in enumerate(parts[:3]):
        seen = store.peek(4)
        assert torch.equal(seen.images, code().decode(code().encode(part)).images)
        assert store.append(seen).tolist() == list(range(4 * number, 4 * number + 4))
    store.drop(torch.arange(4))
    store.commit()
    again = FilledStore(code(), toy.NUM_CLASSES, pool, key)
    again.restore(12, torch.arange(4, 12))
    for one in (store, again):
        assert equal(one, torch.arange(8, 12), parts[2])
        assert one.class_counts.tolist() == store.class_counts.tolist()


@pytest.mark.ray
def test_trials_share_rounds_in_each_place(pool, rows):
    from condkd_ray.cluster.pool.stores import SharedStore

    key, parts = f"shared {rows}", [toy.samples(4, seed=seed) for seed in range(4)]
    maker, reader = (SharedStore(code(), toy.NUM_CLASSES, pool, key, reader=name) for name in "ab")
    for number, part in enumerate(parts):
        maker.deliver(number, part, {})
        reader.take(number)
        for store in (maker, reader):
            store.append(store.peek(4))
            assert equal(store, torch.arange(4 * number, 4 * number + 4), part)
    reader.drop(torch.arange(8))
    reader.commit()
    with pytest.raises(KeyError):
        reader.gather(torch.tensor([3]))
    assert equal(maker, torch.arange(4), parts[0])
    assert equal(reader, torch.arange(12, 16), parts[3])


@pytest.mark.ray
def test_trials_of_a_sweep_draw_from_each_other_in_each_place(pool, rows):
    from condkd_ray.cluster.pool.stores import SweepStore

    key, parts = f"sweep {rows}", {name: toy.samples(4, seed=seed) for seed, name in enumerate("ab")}
    stores = {name: SweepStore(code(), toy.NUM_CLASSES, pool, key, reader=name) for name in "ab"}
    for name, store in stores.items():
        for size in store.contribute(0, parts[name]):
            store.append(store.peek(size))
    assert stores["a"].num_ids == 4
    assert equal(stores["b"], torch.arange(4), parts["a"])
    assert equal(stores["b"], torch.arange(4, 8), parts["b"])
    again = SweepStore(code(), toy.NUM_CLASSES, pool, key, reader="b")
    again.restore(8, torch.tensor([1, 6]))
    assert equal(again, torch.tensor([6]), parts["b"][torch.tensor([2])])


@pytest.mark.ray
def test_a_trials_own_round_is_not_copied_to_the_device_again(pool, monkeypatch):
    from condkd_ray.cluster.pool.stores import PoolStore

    class RecordingRows(DeviceRows):
        def put(self, start, chunk, near=None):
            puts.append((start, near is not None))
            super().put(start, chunk, near)

    puts: list[tuple[int, bool]] = []
    monkeypatch.setattr(module, "rows_on", lambda device, limit: RecordingRows(torch.device("cpu"), 2**30))
    store = PoolStore(code(), toy.NUM_CLASSES, pool, "own")
    for seed in range(2):
        store.append(toy.samples(4, seed=seed))
    assert puts == [(0, True), (4, True)]
    puts.clear()
    PoolStore(code(), toy.NUM_CLASSES, pool, "own").restore(8, torch.arange(8))
    assert puts == [(0, False), (4, False)]


@pytest.mark.ray
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limit", [None, 4000], ids=["all on the device", "most on the host"])
def test_on_a_gpu_no_draw_from_the_pool_waits_and_results_equal_those_of_the_cpu(pool, limit):

    from condkd_ray.cluster.pool.stores import FilledStore, PoolStore

    keys = {device: f"{device} {limit}" for device in ("cpu", "cuda")}
    host = PoolStore(code(), 7, pool, keys["cpu"])
    device = PoolStore(code(), 7, pool, keys["cuda"], "cuda", device_limit=limit)
    assert_alike(draws_without_waiting(host, 12), draws_without_waiting(device, 12))
    assert device.num_bytes == host.num_bytes
    assert torch.equal(device.class_counts, host.class_counts)
    # Samples of other trials come from the host's memory.
    made, key = toy.samples(40), f"made {limit}"
    fill(pool, code(), key, 0, made)
    host, device = (FilledStore(code(), toy.NUM_CLASSES, pool, key, where) for where in ("cpu", "cuda"))
    with waiting_is_an_error():
        seen = device.peek(40)
    assert_alike([host.peek(40)], [seen])
