import dataclasses

import pytest
import torch

from condkd_ray.core.method import InputError, Meter, NonFiniteError, require
from condkd_ray.methods.inversion import Fast

NAN, INF = float("nan"), float("inf")


def meter(**terms: list[float]) -> Meter:
    found = Meter("kd")
    for values in zip(*terms.values(), strict=True):
        found.add(**{name: torch.tensor(value) for name, value in zip(terms, values, strict=True)})
    return found


def test_read_gives_means_over_the_steps():
    assert meter(loss=[1.0, 2.0, 6.0], agreement=[0.0, 0.5, 1.0]).read() == {"kd/loss": 3.0, "kd/agreement": 0.5}
    assert Meter("kd").read() == {}


def test_a_term_added_in_some_steps_only_has_the_mean_of_those():
    found = meter(loss=[2.0])
    found.add(loss=torch.tensor(4.0), bn=torch.tensor(5.0))
    assert found.read() == {"kd/loss": 3.0, "kd/bn": 5.0}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_term_to_break_is_named_although_the_others_follow(bad):
    found = meter(loss=[1.0, 1.0, bad, bad], oh=[1.0, bad, bad, bad], bn=[1.0, 1.0, 1.0, bad])
    with pytest.raises(NonFiniteError, match=r"^loss term kd/oh is not finite at step 2$"):
        found.read()


def test_a_term_that_recovers_is_still_reported():
    with pytest.raises(NonFiniteError, match=r"kd/loss is not finite at step 1$"):
        meter(loss=[NAN, 1.0, 1.0]).read()


def test_a_meter_holds_no_graph():
    weight = torch.ones((), requires_grad=True)
    found = Meter("kd")
    found.add(loss=weight * 2)
    assert not found._terms["loss"][0].requires_grad


def test_require_names_thing_value_and_what_is_accepted():
    require(True, "steps", 3, "an integer >= 1")
    with pytest.raises(InputError, match=r"^steps is 0; accepted: an integer >= 1$"):
        require(False, "steps", 0, "an integer >= 1")


def test_a_method_is_a_value():
    assert Fast(steps=3) == Fast(steps=3) != Fast(steps=4)
    assert hash(Fast(steps=3)) == hash(Fast(steps=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Fast().steps = 4  # type: ignore[misc]
