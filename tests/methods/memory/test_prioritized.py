from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.ssd_kd import Buffer

from condkd_ray.core.method import InputError, NonFiniteError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.memory import Prioritized
from condkd_ray.methods.memory.prioritized import rows_at
from methods.memory.rounds import round_of, store

TEACHER = SimpleNamespace(train_size=100, num_classes=3)
GAPS = torch.tensor([0.5, 0.0, 2.0, 1.0, 0.25, 4.0])


class Played:
    """A memory over a store; every round is of one class."""

    def __init__(self, seed=0, **fields):
        self.memory, self.store, self.rng, self.rounds = Prioritized(**fields), store(), Streams(seed), 0
        self.state = self.memory.init(TEACHER, self.rng)

    def add(self, count):
        self.rounds += 1
        self.memory.add(self.state, self.store, round_of(self.rounds, count), teacher=TEACHER, rng=self.rng)

    def draw(self, count):
        return self.memory.draw(self.state, self.store, count, teacher=TEACHER, rng=self.rng)

    def hear(self, ids, gaps):
        self.memory.feedback(self.state, torch.as_tensor(ids), torch.as_tensor(gaps))

    @property
    def ids(self):
        return self.state.ids.tolist()


def heard(**fields):
    """Six samples, of which the student has been told `GAPS`."""
    played = Played(**{"scale": 0.06} | fields)
    played.add(6)
    played.hear(range(6), GAPS)
    return played


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8),
    evict=st.sampled_from(["lowest", "oldest"]),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    beta=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_it_is_what_a_plain_list_would_be(rounds, evict, alpha, beta, seed):
    played, rng = Played(seed, scale=0.07, evict=evict, alpha=alpha, beta=beta), torch.Generator().manual_seed(seed)
    wanted = Buffer(7, alpha, beta, played.memory.eps, evict)
    for size, steps in rounds:
        wanted.add(range(played.store.num_ids, played.store.num_ids + size))
        played.add(size)
        for _ in range(steps):
            drawn = played.draw(5)
            gaps = torch.rand(5, generator=rng)
            corrections = dict(zip([entry[0] for entry in wanted.entries], wanted.corrections(), strict=True))
            weights = torch.tensor([corrections[i] for i in drawn.ids.tolist()])
            torch.testing.assert_close(drawn.weights, (weights / weights.mean()).float())
            played.hear(drawn.ids, gaps)
            wanted.feedback(drawn.ids.tolist(), gaps.double().tolist())
        ids, deltas, kept = zip(*wanted.entries, strict=True)
        assert played.ids == list(ids)
        torch.testing.assert_close(played.state.deltas, torch.tensor(deltas, dtype=torch.float64))
        torch.testing.assert_close(played.state.weights, torch.tensor(kept, dtype=torch.float64))
        assert played.store.class_counts.sum() == len(ids)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_follow_the_priorities(alpha):
    """To five standard errors."""
    played, count = heard(alpha=alpha, eps=0.01), 20_000
    chances = (GAPS.double() + 0.01) ** alpha
    chances /= chances.sum()
    shares = torch.bincount(played.draw(count).ids, minlength=6) / count
    assert ((shares - chances).abs() < 5 * (chances * (1 - chances) / count).sqrt() + 1e-9).all()


def test_draws_are_those_of_pytorch_from_the_same_random_numbers():
    chances, rng = torch.rand(1000, dtype=torch.float64) ** 3, torch.Generator()
    chances /= chances.sum()
    wanted = torch.multinomial(chances, 5000, replacement=True, generator=rng.manual_seed(1))
    at = torch.rand(5000, dtype=torch.float64, generator=rng.manual_seed(1))
    assert torch.equal(rows_at(chances, at), wanted)


def test_a_row_without_a_chance_is_never_drawn_and_the_last_one_is_the_last():
    chances = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    at = torch.tensor([0.0, 0.25, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert rows_at(chances, at).tolist() == [1, 1, 1, 3, 3]


@pytest.mark.parametrize(("beta", "corrected"), [(1.0, True), (0.4, False), (0.0, False)])
def test_whole_weights_take_the_bias_out_of_a_mean(beta, corrected):
    """To five standard errors: the weighted mean of the draws is the mean of all that is held."""
    played, values = heard(beta=beta, eps=0.5, divide_by="largest_held"), torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    drawn = played.draw(40_000)
    terms = drawn.weights * values[drawn.ids]
    found, error = terms.mean() / drawn.weights.mean(), 5 * terms.std() / drawn.weights.mean() / 200
    assert (abs(found - values.mean()) < error) == corrected


def test_weights_have_a_largest_of_one_in_the_draw_or_in_the_memory():
    for _ in range(5):
        assert heard(divide_by="largest").draw(3).weights.max() == 1
    played = heard(divide_by="largest_held")
    drawn = played.draw(200)
    assert drawn.weights[drawn.ids == 1].eq(1).all()
    assert drawn.weights[drawn.ids != 1].max() < 0.1
    assert torch.equal(heard(beta=0.0).draw(50).weights, torch.ones(50))


def test_weights_of_a_draw_have_a_mean_of_one_and_keep_their_ratios():
    drawn, whole = heard().draw(200), heard(divide_by="largest_held").draw(200)
    assert torch.equal(drawn.ids, whole.ids)
    assert drawn.weights.mean() == pytest.approx(1)
    torch.testing.assert_close(drawn.weights / drawn.weights[0], whole.weights / whole.weights[0])


@pytest.mark.parametrize("divide_by", ["mean", "largest", "largest_held"])
@pytest.mark.parametrize("unit", [1e-150, 1.0, 1e150])
def test_of_far_too_sharp_priorities_the_largest_alone_is_drawn(unit, divide_by):
    played = heard(alpha=1e4, eps=1e-300, divide_by=divide_by)
    played.state.deltas = GAPS.double() * unit
    drawn = played.draw(20)
    assert drawn.ids.tolist() == [5] * 20
    assert drawn.weights.tolist() == [1.0] * 20


def test_what_is_told_changes_the_drawn_samples_alone():
    played = heard()
    before = played.state.deltas.clone(), played.state.weights.clone()
    played.hear([4, 2], [0.1, 0.2])
    for found, old in zip((played.state.deltas, played.state.weights), before, strict=True):
        assert (found != old).tolist() == [False, False, True, False, True, False]


def test_a_sample_drawn_twice_gets_the_mean_in_whatever_order():
    one, other = heard(), heard()
    one.hear([3, 0, 3], [1.0, 5.0, 2.0])
    other.hear([3, 3, 0], [2.0, 1.0, 5.0])
    assert torch.equal(one.state.deltas, other.state.deltas)
    third = heard()
    third.hear([3, 0], [1.5, 5.0])
    assert torch.equal(one.state.deltas, third.state.deltas)


def test_new_samples_come_first_in_line():
    played = heard(scale=0.5)
    played.add(4)
    assert played.state.deltas[6:].tolist() == [4.0] * 4
    assert played.state.weights[6:].tolist() == [1.0] * 4


@pytest.mark.parametrize(("evict", "kept"), [("lowest", [2, 3, 5]), ("oldest", [3, 4, 5])])
def test_a_round_replaces_as_many_old_samples_as_it_must(evict, kept):
    played = heard(evict=evict)
    played.add(3)
    assert played.ids == [*kept, 6, 7, 8]
    assert played.store.class_counts[:3].tolist() == [0, 3, 3]


@pytest.mark.parametrize("evict", ["lowest", "oldest"])
def test_of_a_round_too_large_the_last_stay(evict):
    played = heard(evict=evict)
    played.add(10)
    assert played.ids == list(range(10, 16))


@pytest.mark.parametrize(("scale", "kept"), [(0.1, 10), (0.04, 4), (1.0, 25)])
def test_one_number_says_how_much_is_kept(scale, kept):
    played = Played(scale=scale)
    played.add(25)
    assert len(played.ids) == kept


def test_room_for_less_than_a_sample_a_class_is_refused():
    with pytest.raises(InputError, match=r"prioritized scale is 0.02; accepted: at least 0.03: 3 samples, one a class"):
        Played(scale=0.02)


def test_no_answer_changes_nothing():
    played, before = heard(), heard()
    played.hear([], [])
    assert torch.equal(played.state.deltas, before.state.deltas)
    assert torch.equal(played.state.weights, before.state.weights)


@pytest.mark.parametrize("fields", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_student_gone_astray_is_told_when_the_round_is_over(bad, fields):
    played = heard(**fields)
    played.hear([0, 1], [0.5, bad])
    # Whatever it is told later.
    played.hear([0, 1], [0.5, 0.5])
    for _ in range(5):
        played.hear(played.draw(6).ids, torch.ones(6))
    with pytest.raises(NonFiniteError, match="kd/gap"):
        played.add(2)
    assert played.store.num_ids == 6
