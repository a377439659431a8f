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


class MemoryRun:
    """A memory with a store; every round has one class."""

    def __init__(self, seed=0, **fields):
        self.memory, self.store, self.rng, self.rounds = Prioritized(**fields), store(), Streams(seed), 0
        self.state = self.memory.init(TEACHER, self.rng)

    def add(self, count):
        self.rounds += 1
        self.memory.add(self.state, self.store, round_of(self.rounds, count), teacher=TEACHER, rng=self.rng)

    def draw(self, count):
        return self.memory.draw(self.state, self.store, count, teacher=TEACHER, rng=self.rng)

    def feedback(self, ids, gaps):
        self.memory.feedback(self.state, torch.as_tensor(ids), torch.as_tensor(gaps))

    @property
    def ids(self):
        return self.state.ids.tolist()


def with_feedback(**fields):
    """Return a memory of six samples whose feedback is `GAPS`."""
    played = MemoryRun(**{"scale": 0.06} | fields)
    played.add(6)
    played.feedback(range(6), GAPS)
    return played


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8),
    evict=st.sampled_from(["lowest", "oldest"]),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    beta=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_memory_equals_a_plain_list(rounds, evict, alpha, beta, seed):
    played, rng = MemoryRun(seed, scale=0.07, evict=evict, alpha=alpha, beta=beta), torch.Generator().manual_seed(seed)
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
            played.feedback(drawn.ids, gaps)
            wanted.feedback(drawn.ids.tolist(), gaps.double().tolist())
        ids, deltas, kept = zip(*wanted.entries, strict=True)
        assert played.ids == list(ids)
        torch.testing.assert_close(played.state.deltas, torch.tensor(deltas, dtype=torch.float64))
        torch.testing.assert_close(played.state.weights, torch.tensor(kept, dtype=torch.float64))
        assert played.store.class_counts.sum() == len(ids)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_follow_the_priorities(alpha):
    """The tolerance is five standard errors."""
    played, count = with_feedback(alpha=alpha, eps=0.01), 20_000
    chances = (GAPS.double() + 0.01) ** alpha
    chances /= chances.sum()
    shares = torch.bincount(played.draw(count).ids, minlength=6) / count
    assert ((shares - chances).abs() < 5 * (chances * (1 - chances) / count).sqrt() + 1e-9).all()


def test_draws_equal_those_of_pytorch_for_the_same_random_numbers():
    chances, rng = torch.rand(1000, dtype=torch.float64) ** 3, torch.Generator()
    chances /= chances.sum()
    wanted = torch.multinomial(chances, 5000, replacement=True, generator=rng.manual_seed(1))
    at = torch.rand(5000, dtype=torch.float64, generator=rng.manual_seed(1))
    assert torch.equal(rows_at(chances, at), wanted)


def test_rows_of_probability_0_are_never_drawn():
    chances = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    at = torch.tensor([0.0, 0.25, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert rows_at(chances, at).tolist() == [1, 1, 1, 3, 3]


@pytest.mark.parametrize(("beta", "corrected"), [(1.0, True), (0.4, False), (0.0, False)])
def test_weights_with_beta_1_make_a_mean_unbiased(beta, corrected):
    """The weighted mean of the draws equals the mean of all held samples within five standard errors."""
    played, values = (
        with_feedback(beta=beta, eps=0.5, divide_by="largest_held"),
        torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0]),
    )
    drawn = played.draw(40_000)
    terms = drawn.weights * values[drawn.ids]
    found, error = terms.mean() / drawn.weights.mean(), 5 * terms.std() / drawn.weights.mean() / 200
    assert (abs(found - values.mean()) < error) == corrected


def test_the_largest_weight_in_the_draw_or_in_the_memory_is_one():
    for _ in range(5):
        assert with_feedback(divide_by="largest").draw(3).weights.max() == 1
    played = with_feedback(divide_by="largest_held")
    drawn = played.draw(200)
    assert drawn.weights[drawn.ids == 1].eq(1).all()
    assert drawn.weights[drawn.ids != 1].max() < 0.1
    assert torch.equal(with_feedback(beta=0.0).draw(50).weights, torch.ones(50))


def test_weights_of_a_draw_have_a_mean_of_one_and_keep_their_ratios():
    drawn, whole = with_feedback().draw(200), with_feedback(divide_by="largest_held").draw(200)
    assert torch.equal(drawn.ids, whole.ids)
    assert drawn.weights.mean() == pytest.approx(1)
    torch.testing.assert_close(drawn.weights / drawn.weights[0], whole.weights / whole.weights[0])


@pytest.mark.parametrize("divide_by", ["mean", "largest", "largest_held"])
@pytest.mark.parametrize("unit", [1e-150, 1.0, 1e150])
def test_with_extreme_priorities_only_the_largest_is_drawn(unit, divide_by):
    played = with_feedback(alpha=1e4, eps=1e-300, divide_by=divide_by)
    played.state.deltas = GAPS.double() * unit
    drawn = played.draw(20)
    assert drawn.ids.tolist() == [5] * 20
    assert drawn.weights.tolist() == [1.0] * 20


def test_feedback_changes_only_the_drawn_samples():
    played = with_feedback()
    before = played.state.deltas.clone(), played.state.weights.clone()
    played.feedback([4, 2], [0.1, 0.2])
    for found, old in zip((played.state.deltas, played.state.weights), before, strict=True):
        assert (found != old).tolist() == [False, False, True, False, True, False]


def test_a_sample_drawn_twice_gets_the_mean_in_any_order():
    one, other = with_feedback(), with_feedback()
    one.feedback([3, 0, 3], [1.0, 5.0, 2.0])
    other.feedback([3, 3, 0], [2.0, 1.0, 5.0])
    assert torch.equal(one.state.deltas, other.state.deltas)
    third = with_feedback()
    third.feedback([3, 0], [1.5, 5.0])
    assert torch.equal(one.state.deltas, third.state.deltas)


def test_new_samples_have_the_highest_priority():
    played = with_feedback(scale=0.5)
    played.add(4)
    assert played.state.deltas[6:].tolist() == [4.0] * 4
    assert played.state.weights[6:].tolist() == [1.0] * 4


@pytest.mark.parametrize(("evict", "kept"), [("lowest", [2, 3, 5]), ("oldest", [3, 4, 5])])
def test_a_round_replaces_as_many_old_samples_as_it_must(evict, kept):
    played = with_feedback(evict=evict)
    played.add(3)
    assert played.ids == [*kept, 6, 7, 8]
    assert played.store.class_counts[:3].tolist() == [0, 3, 3]


@pytest.mark.parametrize("evict", ["lowest", "oldest"])
def test_of_a_round_beyond_the_capacity_the_last_samples_are_kept(evict):
    played = with_feedback(evict=evict)
    played.add(10)
    assert played.ids == list(range(10, 16))


@pytest.mark.parametrize(("scale", "kept"), [(0.1, 10), (0.04, 4), (1.0, 25)])
def test_scale_sets_the_number_of_kept_samples(scale, kept):
    played = MemoryRun(scale=scale)
    played.add(25)
    assert len(played.ids) == kept


def test_a_capacity_below_one_sample_a_class_is_refused():
    with pytest.raises(
        InputError, match=r"prioritized scale is 0.02; accepted: at least 0.03: 3 samples, one per class"
    ):
        MemoryRun(scale=0.02)


def test_empty_feedback_changes_nothing():
    played, before = with_feedback(), with_feedback()
    played.feedback([], [])
    assert torch.equal(played.state.deltas, before.state.deltas)
    assert torch.equal(played.state.weights, before.state.weights)


@pytest.mark.parametrize("fields", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_feedback_that_is_not_finite_raises_an_error_in_the_next_round(bad, fields):
    played = with_feedback(**fields)
    played.feedback([0, 1], [0.5, bad])
    # Later finite feedback does not prevent the error.
    played.feedback([0, 1], [0.5, 0.5])
    for _ in range(5):
        played.feedback(played.draw(6).ids, torch.ones(6))
    with pytest.raises(NonFiniteError, match="kd/gap"):
        played.add(2)
    assert played.store.num_ids == 6
