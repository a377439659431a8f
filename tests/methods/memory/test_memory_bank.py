import pytest
from toy import make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory import Bank
from methods.memory.rounds import round_of, store


def after(rounds: int, memory: Bank):
    kept, rng, teacher = store(), Streams(0), make_teacher()
    state = memory.init(teacher, rng)
    for number in range(rounds):
        memory.add(state, kept, round_of(number, 8), teacher=teacher, rng=rng)
    return state, kept


def test_every_period_the_first_samples_of_a_round_become_an_entry_and_the_oldest_is_dropped():
    state, kept = after(8, Bank(entries=2, entry_size=3, period=3))
    assert [entry.tolist() for entry in state.entries] == [[24, 25, 26], [48, 49, 50]]
    assert kept.class_counts[:8].tolist() == [0, 0, 0, 3, 0, 0, 3, 8]


def test_a_draw_takes_its_share_from_one_entry():
    memory = Bank(entries=3, entry_size=4, period=1, share=0.25)
    state, kept = after(4, memory)
    rng, teacher = Streams(0), make_teacher()
    seen = set()
    for _ in range(40):
        labels = memory.draw(state, kept, 8, teacher=teacher, rng=rng).samples.labels
        fresh, old = labels[[0, 1, 3, 4, 5, 7]], labels[[2, 6]]
        assert fresh.tolist() == [3] * 6
        assert old[0] == old[1]
        seen.add(int(old[0]))
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("field", ["entries", "entry_size", "period"])
def test_less_than_one_is_refused(field: str):
    with pytest.raises(InputError, match=f"bank {field} is 0; accepted: an integer >= 1"):
        Bank(**{field: 0})
