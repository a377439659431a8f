"""Proxies of test accuracy against one another."""

import math

import pytest

from condkd_ray.proxies import rank, ranking_table


def test_a_proxy_that_ranks_as_the_test_does_comes_first():
    accuracies = [0.1, 0.5, 0.3, 0.9, 0.7]
    told = [{"good": a**3, "bad": -a, "noise": noise} for a, noise in zip(accuracies, [3, 1, 4, 1, 5], strict=True)]
    ranked = rank(told, accuracies)
    assert [one.candidate for one in ranked] == ["good", "noise", "bad"]
    assert ranked[0].rho == pytest.approx(1.0)
    assert ranked[-1].rho == pytest.approx(-1.0)
    assert ranked[1].low < ranked[1].rho < ranked[1].high
    assert {one.n for one in ranked} == {5}
    assert ranking_table(ranked).rows[0] == ["good", "+1.00", "+1.00 to +1.00", "5"]


def test_one_that_never_differs_ranks_nothing():
    assert math.isnan(rank([{"flat": 1.0}] * 3, [0.1, 0.2, 0.3])[0].rho)
