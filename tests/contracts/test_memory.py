"""The contract of all replay memories (`condkd_ray.methods.memory.memory`), with a local store."""

import copy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import IMAGE_SHAPE, NUM_CLASSES, make_teacher, toy_config

from condkd_ray.core import checkpoint
from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import Codec, Samples, unseen
from condkd_ray.methods.memory import AnyMemory, Bank, Generative, Growing, Latest, LocalStore, Prioritized, Reservoir
from condkd_ray.trial import config
from contracts.toy_methods import SMALL, pointers, same, sized, small, snake, tensors

each_memory = pytest.mark.parametrize("kind", get_args(AnyMemory), ids=lambda kind: kind.__name__)
TEACHER = make_teacher()


def rows(ids):
    """Return samples with these ids. Two pixels encode the id; label and teacher's class are computed from it."""
    images = torch.zeros(len(ids), *IMAGE_SHAPE)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = ids % 256 / 255, ids // 256 / 255
    return Samples(images, ids % NUM_CLASSES, F.one_hot(ids % NUM_CLASSES, NUM_CLASSES).float())


class MemoryRun:
    """A memory with a store, and the added rounds as plain lists of ids."""

    def __init__(self, memory, seed=0):
        self.memory, self.rng, self.rounds = memory, Streams(seed), []
        self.state = memory.init(TEACHER, self.rng)
        self.store = LocalStore(Codec("unit", (0.0,), (1.0,)), NUM_CLASSES)

    def add(self, count):
        ids = torch.arange(self.store.num_ids, self.store.num_ids + count)
        self.rounds.append(ids.tolist())
        self.memory.add(self.state, self.store, rows(ids), teacher=TEACHER, rng=self.rng)

    def draw(self, count):
        return self.memory.draw(self.state, self.store, count, teacher=TEACHER, rng=self.rng)

    def feedback(self, drawn):
        """Report a loss for each drawn sample, as a student step does."""
        self.memory.feedback(self.state, drawn.ids, 0.1 + drawn.samples.images.flatten(1)[:, 0])

    @property
    def live(self):
        return self.memory.live(self.state).tolist()


def kept_by_growing(memory, rounds):
    return [i for ids in rounds for i in ids][-memory.capacity :]


def kept_by_latest(memory, rounds):
    return rounds[-1]


def kept_by_bank(memory, rounds):
    entries = [ids[: memory.entry_size] for number, ids in enumerate(rounds) if number % memory.period == 0]
    return [i for ids in [*entries[-memory.entries :], rounds[-1]] for i in ids]


def kept_by_reservoir(memory, rounds):
    """Keep the samples with the smallest keys, which are drawn from the memory's stream."""
    made = [i for ids in rounds for i in ids]
    stream = Streams(0).host("reservoir")
    keys = [key for ids in rounds for key in torch.rand(len(ids), dtype=torch.float64, generator=stream).tolist()]
    return [made[row] for row in sorted(range(len(made)), key=keys.__getitem__)[: memory.capacity]]


def kept_by_prioritized(memory, rounds):
    """Without feedback all samples have the same priority, and the oldest are dropped."""
    return [i for ids in rounds for i in ids][-memory.capacity(TEACHER) :]


KEPT = {
    Growing: kept_by_growing,
    Latest: kept_by_latest,
    Reservoir: kept_by_reservoir,
    Bank: kept_by_bank,
    Generative: kept_by_latest,
    Prioritized: kept_by_prioritized,
}
OWN_STREAMS = {Reservoir: {"host/reservoir"}, Generative: {"device/replay"}}
"""Random streams that `add` uses, for the memories that use any."""
REMADE = {Generative: 0.25}
"""Share of a draw that is generated and not stored, for the memories that generate samples."""


def used_streams(rng):
    return {f"{place}/{name}" for place, names in rng.state_dict().items() for name in names}


@each_memory
def test_logits_have_no_effect_if_reads_logits_is_false(kind):
    """This holds for all memories of this package."""
    assert not kind.reads_logits
    seen = []
    for with_logits in (True, False):
        played = MemoryRun(small(kind))
        for _ in range(3):
            ids = torch.arange(played.store.num_ids, played.store.num_ids + 9)
            given = rows(ids)
            given = given if with_logits else unseen(given.images, given.labels)
            played.memory.add(played.state, played.store, given, teacher=TEACHER, rng=played.rng)
            drawn = played.draw(8)
            played.memory.feedback(played.state, drawn.ids, drawn.ids.float())
            values = drawn.ids.tolist(), drawn.weights.tolist(), drawn.samples.images.tolist(), played.live
            seen.append((with_logits, *values))
        assert drawn.samples.logits.shape == (8, NUM_CLASSES if with_logits else 0)
    assert [values for with_logits, *values in seen if with_logits] == [
        values for with_logits, *values in seen if not with_logits
    ]


@each_memory
@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=24), count=st.integers(1, 25), commit=st.booleans())
def test_kept_and_drawn_samples_equal_those_of_a_plain_list(kind, sizes, count, commit):
    played = MemoryRun(sized(kind, **SMALL | {"steps": 1}))
    for size in sizes:
        played.add(size)
        kept = set(KEPT[kind](played.memory, played.rounds))
        assert set(played.live) == kept
        counts = torch.bincount(torch.tensor(sorted(kept)) % NUM_CLASSES, minlength=NUM_CLASSES)
        assert torch.equal(played.store.class_counts, counts)
        if commit:
            played.store.commit()
        drawn = played.draw(count)
        assert len(drawn.ids) == len(drawn.weights) == len(drawn.samples) == count
        stored = drawn.ids >= 0
        assert (~stored).sum() == round(REMADE.get(kind, 0) * count)
        assert set(drawn.ids[stored].tolist()) <= kept
        wanted = rows(drawn.ids[stored])
        torch.testing.assert_close(drawn.samples.images[stored], wanted.images)
        assert torch.equal(drawn.samples.labels[stored], wanted.labels)
        recomputed = TEACHER.logits(drawn.samples.images[~stored])
        torch.testing.assert_close(drawn.samples.logits[~stored], recomputed)
        assert torch.equal(drawn.samples.labels[~stored], recomputed.argmax(1))
        assert (drawn.weights == 1).all()


@each_memory
def test_draws_use_the_stream_draw_and_the_memorys_own(kind):
    played, before = MemoryRun(small(kind)), torch.random.get_rng_state()
    assert not used_streams(played.rng)
    played.add(9)
    assert used_streams(played.rng) == OWN_STREAMS.get(kind, set())
    played.draw(4)
    assert used_streams(played.rng) == OWN_STREAMS.get(kind, set()) | {"host/draw"}
    assert torch.equal(torch.random.get_rng_state(), before)


@each_memory
def test_draws_depend_on_the_seed(kind):
    draws = []
    for seed in (0, 0, 1):
        played = MemoryRun(small(kind), seed)
        played.add(20)
        draws.append(played.draw(12).ids)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@each_memory
def test_a_saved_state_continues_bit_for_bit(kind, tmp_path):
    played = MemoryRun(small(kind))
    for size in (9, 7, 8):
        played.add(size)
        played.feedback(played.draw(5))
    checkpoint.save(played.state, tmp_path / "memory")
    checkpoint.save(played.rng, tmp_path / "streams")
    loaded = checkpoint.load(played.memory.init(TEACHER, Streams(0)), tmp_path / "memory")
    rng = checkpoint.load(Streams(5), tmp_path / "streams")
    assert same(list(tensors(loaded)), list(tensors(played.state)))
    assert not {p for p in pointers(loaded) & pointers(played.state) if p}
    other = copy.copy(played)
    other.state, other.rng, other.store = loaded, rng, copy.deepcopy(played.store)
    for size in (4, 6):
        for _ in range(3):
            one, two = played.draw(5), other.draw(5)
            assert torch.equal(one.ids, two.ids)
            assert same(vars(one.samples), vars(two.samples))
            assert torch.equal(one.weights, two.weights)
            played.feedback(one)
            other.feedback(two)
        played.add(size)
        other.add(size)
        assert same(list(tensors(other.state)), list(tensors(played.state)))


@each_memory
def test_feedback_changes_no_sample_and_no_stream(kind):
    played = MemoryRun(small(kind))
    played.add(9)
    drawn = played.draw(6)
    before = played.live, played.store.class_counts, played.rng.state_dict()
    weights = drawn.weights.clone()
    played.feedback(drawn)
    assert same((played.live, played.store.class_counts, played.rng.state_dict()), before)
    assert torch.equal(drawn.weights, weights)
    assert not pointers(played.state) & pointers(drawn.samples)


@each_memory
def test_dropped_samples_are_deleted_by_a_commit(kind):
    played = MemoryRun(small(kind))
    for _ in range(60):
        played.add(10)
        played.store.commit()
    gone = set(range(60)) - {i // 10 for i in played.live}
    with pytest.raises(KeyError):
        played.store.gather(torch.tensor([10 * min(gone)]))
    played.store.gather(torch.tensor(played.live))


@each_memory
def test_held_bytes_counts_what_is_kept_outside_the_store(kind):
    played = MemoryRun(small(kind))
    played.add(10)
    assert (played.memory.held_bytes(played.state) > 0) == (kind in REMADE)


@pytest.mark.parametrize("kind", get_args(AnyMemory), ids=lambda kind: kind.__name__)
def test_config_is_equal_after_yaml_and_is_named_after_its_class_and_file(kind):
    complete = toy_config(memory=small(kind))
    assert config.from_tree(yaml.safe_load(config.dump(complete))) == complete
    assert snake(kind.__name__) == kind().name
    # Memories with the same kind of draw are in the file of their base class.
    folder, _, stem = kind.__module__.rpartition(".")
    assert folder == "condkd_ray.methods.memory"
    assert stem in (kind().name, "memory")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Growing(capacity=0),
        lambda: Bank(entries=0),
        lambda: Bank(entry_size=0),
        lambda: Bank(period=0),
        lambda: Bank(share=1.1),
        lambda: Bank(share=-0.1),
        lambda: Reservoir(capacity=0),
        lambda: Prioritized(scale=0.0),
        lambda: Prioritized(alpha=-0.1),
        lambda: Prioritized(beta=-0.1),
        lambda: Prioritized(eps=0.0),
        lambda: Generative(steps=0),
        lambda: Generative(batch=1),
        lambda: Generative(latent=0),
        lambda: Generative(width=1),
        lambda: Generative(share=1.1),
        lambda: Generative(replay=-0.1),
        lambda: Generative(lr=0.0),
        lambda: Generative(lr_recall=0.0),
        lambda: Generative(logits_weight=-1.0),
    ],
)
def test_invalid_settings_are_rejected(make):
    with pytest.raises(InputError, match="accepted"):
        make()


# Growing.


def test_growing_without_a_capacity_keeps_all_samples():
    played = MemoryRun(Growing())
    for _ in range(30):
        played.add(10)
    assert played.live == list(range(300))


def test_growing_draws_samples_uniformly():
    played = MemoryRun(Growing(capacity=10))
    for _ in range(3):
        played.add(7)
    counts = torch.bincount(played.draw(20_000).ids - 11, minlength=10)
    assert ((counts - 2000).abs() < 5 * (20_000 * 0.1 * 0.9) ** 0.5).all()


# Latest.


def test_latest_draws_each_sample_of_the_round_once_before_it_shuffles_again():
    played = MemoryRun(Latest())
    played.add(30)
    played.add(30)
    passes = [torch.cat([played.draw(10).ids for _ in range(3)]) for _ in range(2)]
    for drawn in passes:
        assert sorted(drawn.tolist()) == list(range(30, 60))
    assert not torch.equal(*passes)


def test_latest_draws_more_samples_than_the_round_has():
    played = MemoryRun(Latest())
    played.add(4)
    counts = torch.bincount(played.draw(10).ids, minlength=4)
    assert counts.sum() == 10
    assert counts.min() >= 2


def test_latest_never_draws_from_an_older_round():
    played = MemoryRun(Latest())
    played.add(8)
    played.draw(3)
    played.add(8)
    assert played.draw(8).ids.min() >= 8


# Bank.


def test_bank_stores_the_first_samples_of_each_period_as_an_entry():
    played = MemoryRun(Bank(entries=2, entry_size=3, period=2, share=0.5))
    entries = []
    for _ in range(5):
        played.add(6)
        entries.append([entry.tolist() for entry in played.state.entries])
    first, third, fifth = [0, 1, 2], [12, 13, 14], [24, 25, 26]
    assert entries == [[first], [first], [first, third], [first, third], [third, fifth]]


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (1 / 9, 2), (0.5, 9), (1.0, 18)])
def test_bank_draws_its_share_from_one_entry_and_the_rest_from_the_newest_round(share, replayed):
    played = MemoryRun(Bank(entries=3, entry_size=4, period=1, share=share))
    for _ in range(3):
        played.add(20)
    used = set()
    for _ in range(30):
        ids = played.draw(18).ids
        past = ids[ids < 40]
        # An entry of the newest round cannot be distinguished from other new samples.
        assert len(past) in (0, replayed)
        assert (past % 20 < 4).all()
        assert len((past // 20).unique()) <= 1
        # A student with condensed images in its batch uses only the first part of the draw.
        assert abs(int((ids[:9] < 40).sum()) - len(past) / 2) <= 1
        used |= set((past // 20).tolist())
    assert used == ({0, 1} if replayed else set())
