import pytest
from hypothesis import given
from hypothesis import strategies as st

from condkd_ray.core.method import InputError
from condkd_ray.core.schedule import Schedule

factors = st.floats(0, 10)
shares = st.floats(0.01, 1)
EPS = 1e-12


@given(start=factors, end=factors, until=shares, progress=st.floats(0, 1))
def test_it_never_leaves_its_ends(start, end, until, progress):
    schedule = Schedule(start=start, end=end, until=until)
    assert (schedule.smallest, schedule.largest) == (min(start, end), max(start, end))
    assert schedule.smallest - EPS <= schedule.at(progress) <= schedule.largest + EPS
    assert schedule.at(progress) >= 0


@given(start=factors, end=factors, until=shares, beyond=st.floats(0, 1))
def test_it_begins_at_its_start_and_stays_at_its_end(start, end, until, beyond):
    schedule = Schedule(start=start, end=end, until=until)
    assert schedule.at(0.0) == pytest.approx(start, abs=EPS)
    assert schedule.at(until) == schedule.at(until + beyond * (1 - until)) == pytest.approx(end, abs=EPS)


@given(start=factors, end=factors, until=shares, progress=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_it_never_turns_back(start, end, until, progress):
    schedule = Schedule(start=start, end=end, until=until)
    earlier, later = (schedule.at(p) for p in sorted(progress))
    assert abs(later - end) <= abs(earlier - end) + EPS


def test_it_is_half_a_cosine():
    schedule = Schedule(start=3.0, end=1.0, until=0.8)
    found = [schedule.at(0.8 * passed) for passed in (0, 1 / 3, 1 / 2, 2 / 3, 1)]
    assert found == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0])


@given(progress=st.floats(0, 1))
def test_a_constant_is_exact(progress):
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
def test_what_is_no_schedule_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Schedule(**change)
