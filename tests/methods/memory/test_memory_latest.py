import torch
from toy import make_teacher

from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory import Latest
from methods.memory.rounds import round_of, store

TEACHER = make_teacher()


def test_draws_are_disjoint_until_all_samples_are_drawn_and_then_shuffled_again():
    memory, kept, rng = Latest(), store(), Streams(0)
    state = memory.init(TEACHER, rng)
    memory.add(state, kept, round_of(0, 12), teacher=TEACHER, rng=rng)
    draws = [memory.draw(state, kept, 4, teacher=TEACHER, rng=rng).ids for _ in range(6)]
    first, second = torch.cat(draws[:3]), torch.cat(draws[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(12))
    assert first.tolist() != second.tolist()


def test_a_new_round_replaces_the_old():
    memory, kept, rng = Latest(), store(), Streams(0)
    state = memory.init(TEACHER, rng)
    for number in range(3):
        memory.add(state, kept, round_of(number, 4), teacher=TEACHER, rng=rng)
        drawn = memory.draw(state, kept, 3, teacher=TEACHER, rng=rng)
        assert set(drawn.samples.labels.tolist()) == {number}
    assert kept.class_counts.sum() == 4
