"""p values against a t test written out, and Holm's correction against its definition."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from condkd_ray.report.significance import corrected, holm, p_value, told
from condkd_ray.report.statistics import ACCURACY, comparisons, difference
from report.report_factory import make_record


def pairs(gains: list[float], arm: str = "mixed"):
    records = [make_record("none", 0, s, metrics={ACCURACY: 0.5}, predictions=[]) for s in range(len(gains))]
    return records + [make_record(arm, 5, s, metrics={ACCURACY: 0.5 + g}, predictions=[]) for s, g in enumerate(gains)]


def test_p_is_that_of_the_paired_t_test():
    gains = [0.02, 0.05, -0.01, 0.04]
    found = difference(pairs(gains), "mixed", "none", 5)
    assert found is not None
    assert p_value(found) == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize("gains", [[0.02], [0.02, 0.02, 0.02]])
def test_no_p_without_a_spread(gains):
    found = difference(pairs(gains), "mixed", "none", 5)
    assert found is not None
    assert p_value(found) is None
    assert told(None) == "-"


def test_p_is_below_a_twentieth_just_where_the_interval_leaves_0_out():
    rng, sides = np.random.default_rng(0), set()
    for n in (2, 3, 5, 10, 20):
        for _ in range(40):
            found = difference(pairs(rng.normal(0.01, 0.02, n).tolist()), "mixed", "none", 5)
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            p = p_value(found)
            assert p is not None
            sides.add(p < 0.05)
            assert (p < 0.05) == (not found.low <= 0 <= found.high)
    assert sides == {True, False}


def test_no_p_where_there_is_no_interval():
    # They differ by rounding alone, in the last bit; the deviation is not quite 0.
    found = difference(pairs([0.3 - 0.1, 0.2, 0.2, 0.1 + 0.1]), "mixed", "none", 5)
    assert found is not None
    assert found.low is None
    assert p_value(found) is None
    # A hair more than rounding: both or neither.
    found = difference(pairs([0.2, 0.2, 0.2, 0.2 + 1.5e-12]), "mixed", "none", 5)
    assert found is not None
    assert (found.low is None) == (p_value(found) is None)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, level = rng.beta(0.3, 2, 7), 0.05
        rejected, order = set(), np.argsort(values)
        for rank, place in enumerate(order):
            if values[place] > level / (len(values) - rank):
                break
            rejected.add(int(place))
        assert {i for i, p in enumerate(holm(values.tolist())) if p <= level} == rejected


def test_corrected_for_the_arms_that_are_compared_with_the_same_one():
    mixed, guided, even = [0.02, 0.05, -0.01, 0.04], [0.3, 0.28, 0.31, 0.33], [0.1, 0.1, 0.1, 0.1]
    many = [*pairs(mixed), *pairs(guided, "guided")[4:], *pairs(even, "condensed_only")[4:]]
    compared = comparisons(many)
    found = {(one.left, one.right): p for one, p in zip(compared, corrected(compared), strict=True)}
    alone = [stats.ttest_1samp(gains, 0).pvalue for gains in (mixed, guided)]
    # Of the three against none the even one has no p; guided - mixed is a question of its own.
    assert found["condensed_only", "none"] is None
    assert found["guided", "none"] == pytest.approx(2 * alone[1], rel=1e-6)
    assert found["mixed", "none"] == pytest.approx(alone[0], rel=1e-6)
    between = [a - b for a, b in zip(guided, mixed, strict=True)]
    assert found["guided", "mixed"] == pytest.approx(stats.ttest_1samp(between, 0).pvalue, rel=1e-6)


def test_each_ipc_is_a_question_of_its_own():
    records = pairs([0.02, 0.05, -0.01, 0.04])
    records += [replace(record, ipc=10) for record in records if record.ipc]
    compared = comparisons(records)
    assert [one.ipc for one in compared] == [5, 10]
    assert corrected(compared) == [p_value(one) for one in compared]
