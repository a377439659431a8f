import pytest
import torch
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory import Reservoir
from methods.memory.rounds import round_of, store

TEACHER = make_teacher()


def filled(memory, rounds, size, seed=0):
    kept, rng = store(), Streams(seed)
    state = memory.init(TEACHER, rng)
    for number in range(rounds):
        memory.add(state, kept, round_of(number, size), teacher=TEACHER, rng=rng)
    return state, kept


def test_all_samples_up_to_the_capacity_are_kept():
    state, kept = filled(Reservoir(capacity=12), 3, 4)
    assert state.ids.tolist() == list(range(12))
    assert kept.class_counts[:3].tolist() == [4, 4, 4]


def test_samples_of_all_rounds_are_kept_equally_often():
    """Tested with 400 runs of 8 rounds of 3 samples, of which 6 are kept, to five standard errors."""
    counts, histories = torch.zeros(8), 400
    for seed in range(histories):
        state, kept = filled(Reservoir(capacity=6), 8, 3, seed)
        assert len(state.ids) == len(set(state.ids.tolist())) == kept.class_counts.sum() == 6
        counts += (state.ids // 3).bincount(minlength=8)
    expected, variance = 6 / 8, 6 * (3 / 24) * (21 / 24) * (18 / 23)
    assert (counts / histories - expected).abs().max() < 5 * (variance / histories) ** 0.5


def test_the_kept_samples_do_not_depend_on_the_sizes_of_rounds():
    memory, kept, rng = Reservoir(capacity=7), store(), Streams(0)
    state = memory.init(TEACHER, rng)
    for number, size in enumerate((1, 9, 2, 20, 1, 7)):
        memory.add(state, kept, round_of(number, size), teacher=TEACHER, rng=rng)
    assert state.ids.tolist() == filled(memory, 10, 4)[0].ids.tolist()


def test_ids_are_kept_oldest_first():
    state, _ = filled(Reservoir(capacity=20), 10, 8)
    assert state.ids.tolist() == sorted(state.ids.tolist())


def test_draws_are_uniform_over_all_kept_samples():
    memory = Reservoir(capacity=8)
    state, kept = filled(memory, 5, 6)
    drawn = memory.draw(state, kept, 8000, teacher=TEACHER, rng=Streams(0))
    shares = torch.stack([(drawn.ids == i).float().mean() for i in state.ids])
    assert (shares - 1 / 8).abs().max() < 5 * (1 / 8 * 7 / 8 / 8000) ** 0.5
    assert torch.equal(drawn.weights, torch.ones(8000))


def test_a_capacity_of_0_is_refused():
    with pytest.raises(InputError, match="reservoir capacity is 0; accepted: an integer >= 1"):
        Reservoir(capacity=0)
