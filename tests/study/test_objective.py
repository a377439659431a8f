"""What a search may look at."""

import math

import pytest

from condkd_ray.core.method import InputError
from condkd_ray.study import Objective

HISTORY = [
    {"round": 1, "proxy/agreement": 0.5, "time/wall_seconds": 2.0, "memory/bytes": 10},
    {"round": 2, "time/wall_seconds": 3.0, "memory/bytes": 20},
]


@pytest.mark.parametrize("name", ["student/test_accuracy", "student/test_accuracy_best"])
def test_test_accuracy_is_refused_with_the_reason(name):
    with pytest.raises(InputError, match=f"objective is '{name}'; accepted: proxy/agreement .*choosing by test"):
        Objective((name,))
    with pytest.raises(InputError, match="choosing by test"):
        Objective(("proxy/agreement", name))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "the first objective is None; accepted: proxy/agreement"),
        (("time/wall_seconds",), "the first objective is 'time/wall_seconds'; accepted: proxy/agreement"),
        (("proxy/agreement", "loss"), "objective is 'loss'; accepted: .*memory/bytes"),
        (("proxy/kl", "proxy/kl"), "each name once"),
    ],
)
def test_names_that_are_none_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        Objective(names)


def test_values_are_the_last_quality_all_seconds_and_the_bytes_at_the_end():
    objective = Objective(("proxy/agreement", "time/wall_seconds", "memory/bytes"))
    assert objective.values(HISTORY) == [0.5, 5.0, 20]
    assert objective.directions == ["maximize", "minimize", "minimize"]
    assert math.isnan(Objective(("proxy/kl",)).values(HISTORY)[0])


def test_the_quality_after_a_round_is_none_where_nobody_measured():
    assert [Objective().now(metrics) for metrics in HISTORY] == [0.5, None]
