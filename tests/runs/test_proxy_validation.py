"""Comparison of proxies of the test accuracy."""

import math

import numpy as np
import pytest

from condkd_ray.core.task import Score
from condkd_ray.runs.proxy_validation import rank, ranking_table


def test_a_proxy_that_ranks_trials_as_the_test_accuracy_does_comes_first():
    accuracies = [0.1, 0.5, 0.3, 0.9, 0.7, 0.2, 0.4, 0.6, 0.8, 0.15, 0.25, 0.35]
    noises = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    scores = [{"good": a**3, "bad": -a, "noise": noise} for a, noise in zip(accuracies, noises, strict=True)]
    ranked = rank(scores, accuracies)
    assert [ranking.candidate for ranking in ranked] == ["good", "noise", "bad"]
    assert ranked[0].rho == pytest.approx(1.0)
    assert ranked[-1].rho == pytest.approx(-1.0)
    assert ranked[1].low < ranked[1].rho < ranked[1].high
    assert {ranking.n for ranking in ranked} == {12}
    assert ranking_table(ranked).rows[0] == ["good", "+1.00", "+1.00 to +1.00", "12"]


def test_few_trials_have_no_interval():
    """A bootstrap of few trials is unreliable: with 5 trials its interval covers the truth in 0.37 to 0.95 of cases."""
    accuracies = [0.1, 0.5, 0.3, 0.9, 0.7]
    (one,) = rank([{"good": a} for a in accuracies], accuracies)
    assert one.rho == pytest.approx(1.0)
    assert math.isnan(one.low)
    assert ranking_table([one]).rows[0] == ["good", "+1.00", "-", "5"]


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_interval_of_rho_covers_the_truth(rho):
    rng, hits, repeats = np.random.default_rng(1), 0, 300
    truth = 6 / math.pi * math.asin(rho / 2)
    for _ in range(repeats):
        x = rng.normal(size=12)
        y = rho * x + math.sqrt(1 - rho**2) * rng.normal(size=12)
        (one,) = rank([{"x": float(value)} for value in x], y.tolist())
        hits += one.low <= truth <= one.high
    # Three standard errors below 0.94.
    assert hits / repeats >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / repeats)


def test_a_constant_proxy_has_no_rank_correlation():
    assert math.isnan(rank([{"flat": 1.0}] * 3, [0.1, 0.2, 0.3])[0].rho)


@pytest.mark.parametrize(("values", "rho"), [([1.0, 2.0], 1.0), ([2.0, 1.0], -1.0)])
def test_two_trials_are_ranked_without_a_warning(values, rho):
    (one,) = rank([{"x": value} for value in values], [0.25, 0.5])
    assert one.rho == pytest.approx(rho)


def test_the_legend_names_the_score_of_the_task():
    ranked = rank([{"x": 1.0}, {"x": 2.0}], [0.1, 0.2])
    assert "with test accuracy over trials" in ranking_table(ranked).legend
    assert "with test mean IoU over trials" in ranking_table(ranked, Score("segmentation")).legend


def test_equal_scores_share_a_rank():
    (one,) = rank([{"x": value} for value in (1.0, 2.0, 2.0, 4.0)], [0.1, 0.2, 0.3, 0.4])
    # Pearson's r of the ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert one.rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))
