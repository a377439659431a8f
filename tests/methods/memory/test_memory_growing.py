import pytest
import torch
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory import Growing
from methods.memory.rounds import round_of, store

TEACHER = make_teacher()


def test_the_oldest_samples_beyond_the_capacity_are_dropped():
    memory, kept = Growing(capacity=5), store()
    state = memory.init(TEACHER, Streams(0))
    for number in range(4):
        memory.add(state, kept, round_of(number, 2), teacher=TEACHER, rng=Streams(0))
    assert state.ids.tolist() == [3, 4, 5, 6, 7]
    assert kept.class_counts[:4].tolist() == [0, 1, 2, 2]


def test_draws_are_uniform_over_all_kept_samples():
    memory, kept = Growing(), store()
    state = memory.init(TEACHER, Streams(0))
    for number in range(4):
        memory.add(state, kept, round_of(number, 8), teacher=TEACHER, rng=Streams(0))
    drawn = memory.draw(state, kept, 8000, teacher=TEACHER, rng=Streams(0))
    shares = drawn.samples.labels.bincount() / 8000
    # The tolerance is four standard errors of a share of 1/4.
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 8000) ** 0.5
    assert torch.equal(drawn.weights, torch.ones(8000))


def test_a_capacity_of_0_is_refused():
    with pytest.raises(InputError, match="memory capacity is 0; accepted: null or >= 1"):
        Growing(capacity=0)
