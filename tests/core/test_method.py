import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.core.method import InputError, Meter, NonFiniteError, Schedule, require
from condkd_ray.methods.inversion import Fast

NAN, INF = float("nan"), float("inf")


def meter(**terms: list[float]) -> Meter:
    found = Meter("kd")
    for values in zip(*terms.values(), strict=True):
        found.add(**{name: torch.tensor(value) for name, value in zip(terms, values, strict=True)})
    return found


def test_read_returns_means_over_the_steps():
    assert meter(loss=[1.0, 2.0, 6.0], agreement=[0.0, 0.5, 1.0]).read() == {"kd/loss": 3.0, "kd/agreement": 0.5}
    assert Meter("kd").read() == {}


def test_a_term_of_some_steps_has_the_mean_of_those_steps():
    found = meter(loss=[2.0])
    found.add(loss=torch.tensor(4.0), bn=torch.tensor(5.0))
    assert found.read() == {"kd/loss": 3.0, "kd/bn": 5.0}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_term_that_is_not_finite_is_reported(bad):
    found = meter(loss=[1.0, 1.0, bad, bad], oh=[1.0, bad, bad, bad], bn=[1.0, 1.0, 1.0, bad])
    with pytest.raises(NonFiniteError, match=r"^loss term kd/oh is not finite at step 2$"):
        found.read()


def test_a_term_that_was_not_finite_is_reported_even_if_it_is_later():
    with pytest.raises(NonFiniteError, match=r"kd/loss is not finite at step 1$"):
        meter(loss=[NAN, 1.0, 1.0]).read()


def test_a_meter_keeps_no_autograd_graph():
    class Hook:
        """Lives as long as the autograd graph that refers to it."""

        def __call__(self, gradient):
            return gradient

    hook, loss, found = Hook(), torch.ones((), requires_grad=True) * 2, Meter("kd")
    loss.register_hook(hook)
    alive = weakref.ref(hook)
    found.add(loss=loss)
    del loss, hook
    assert alive() is None
    assert found.read() == {"kd/loss": 2.0}


def test_the_message_of_require_has_thing_value_and_accepted_values():
    require(True, "steps", 3, "an integer >= 1")
    with pytest.raises(InputError, match=r"^steps is 0; accepted: an integer >= 1$"):
        require(False, "steps", 0, "an integer >= 1")


def test_methods_compare_by_value():
    assert Fast(steps=3) == Fast(steps=3) != Fast(steps=4)
    assert hash(Fast(steps=3)) == hash(Fast(steps=3))


factors = st.floats(0, 10)
shares = st.floats(0.01, 1)
EPS = 1e-12


@given(start=factors, end=factors, until=shares, progress=st.floats(0, 1))
def test_a_schedule_stays_between_start_and_end(start, end, until, progress):
    schedule = Schedule(start=start, end=end, until=until)
    assert (schedule.smallest, schedule.largest) == (min(start, end), max(start, end))
    assert schedule.smallest - EPS <= schedule.at(progress) <= schedule.largest + EPS
    assert schedule.at(progress) >= 0


@given(start=factors, end=factors, until=shares, beyond=st.floats(0, 1))
def test_a_schedule_begins_at_start_and_stays_at_end(start, end, until, beyond):
    schedule = Schedule(start=start, end=end, until=until)
    assert schedule.at(0.0) == pytest.approx(start, abs=EPS)
    assert schedule.at(until) == schedule.at(until + beyond * (1 - until)) == pytest.approx(end, abs=EPS)


@given(start=factors, end=factors, until=shares, progress=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_schedule_is_monotonic(start, end, until, progress):
    schedule = Schedule(start=start, end=end, until=until)
    earlier, later = (schedule.at(p) for p in sorted(progress))
    assert abs(later - end) <= abs(earlier - end) + EPS


def test_a_schedule_is_half_a_cosine():
    schedule = Schedule(start=3.0, end=1.0, until=0.8)
    found = [schedule.at(0.8 * passed) for passed in (0, 1 / 3, 1 / 2, 2 / 3, 1)]
    assert found == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0])


@given(progress=st.floats(0, 1))
def test_a_constant_schedule_is_exact(progress):
    assert Schedule().at(progress) == 1
    assert Schedule(start=0.3, end=0.3).at(progress) == 0.3
    assert Schedule(start=0.0, end=0.0).at(progress) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": -0.1}, "schedule start or end is -0.1; accepted: a factor >= 0"),
        ({"end": float("nan")}, "schedule start or end is"),
        ({"start": float("nan")}, "schedule start or end is"),
        ({"end": float("inf")}, "schedule start or end is"),
        ({"until": 0.0}, "schedule until is 0.0; accepted: 0 < share <= 1"),
        ({"until": 1.1}, "schedule until is 1.1"),
        ({"until": float("nan")}, "schedule until is nan"),
    ],
)
def test_invalid_schedules_are_rejected(change, message):
    with pytest.raises(InputError, match=message):
        Schedule(**change)
