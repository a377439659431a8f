"""Statistics against hand formulas, plain loops and simulation; p against a t test and Holm's definition."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from condkd_ray.report import statistics
from condkd_ray.report.statistics import (
    ACCURACY,
    comparisons,
    difference,
    holm,
    image_interval,
    interval,
    judged,
    p_value,
    rankings,
    spread,
    t_interval,
)
from condkd_ray.report.tables.table import chance
from report.report_factory import LABELS, make_record, sweep


def with_accuracy(arm: str, ipc: int, seed: int, accuracy: float, **changes):
    return make_record(arm, ipc, seed, metrics={ACCURACY: accuracy}, predictions=[], **changes)


def test_spread_by_hand():
    found = spread([0.5, math.nan, 0.7, 0.9])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.7), 3)
    assert found.std == pytest.approx(math.sqrt((0.04 + 0 + 0.04) / 2))
    assert spread([0.5]) == statistics.Spread(mean=0.5, std=None, n=1)
    assert spread([math.nan]) is None


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 30])
def test_paired_t_by_the_formula(n):
    values = np.random.default_rng(n).normal(0.03, 0.01, n)
    ends, method = interval(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert ends == (pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
    assert method == f"paired t, df {n - 1}"


def test_paired_t_agrees_with_scipys_test():
    left, right = np.random.default_rng(0).normal(0.7, 0.02, (2, 6))
    found = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert interval(left - right)[0] == (pytest.approx(found.low), pytest.approx(found.high))


def test_a_missing_interval_has_a_stated_reason():
    assert interval(np.array([0.1])) == (None, "no interval, n = 1")
    for n in (2, 5, 12):
        # 0.9 - 0.8 and 0.7 - 0.6 differ in the last bit; that is no spread.
        values = np.where(np.arange(n) % 2, 0.9 - 0.8, 0.7 - 0.6)
        assert interval(values) == (None, "no interval, all differences equal")


DIFFERENCES = {
    "normal": (lambda rng, size: rng.normal(0.5, 1.0, size), 0.5),
    "t3": (lambda rng, size: rng.standard_t(3, size), 0.0),
    "exponential": (lambda rng, size: rng.exponential(1.0, size), 1.0),
    "lognormal": (lambda rng, size: rng.lognormal(0.0, 1.0, size), math.exp(0.5)),
}
LEAST = {"normal": 0.945, "t3": 0.93}


def coverage(kind: str, n: int, samples: int = 40_000) -> float:
    """Share of seeded samples of n differences whose interval contains the true mean."""
    draw, truth = DIFFERENCES[kind]
    low, high = t_interval(draw(np.random.default_rng(n), (samples, n)))
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("kind", LEAST)
def test_the_interval_over_seeds_has_its_nominal_coverage(kind, n):
    # With 40 000 samples the standard error is 0.0011.
    assert coverage(kind, n) >= LEAST[kind]
    # The simulated intervals equal those of the tables.
    draw, _ = DIFFERENCES[kind]
    for values in draw(np.random.default_rng(n), (20, n)):
        assert interval(values)[0] == pytest.approx(tuple(map(float, t_interval(values))), rel=1e-12)
        assert interval(values)[1] == f"paired t, df {n - 1}"


@pytest.mark.parametrize("n", [3, 10])
def test_the_interval_of_the_tables_has_its_nominal_coverage(n):
    values = np.random.default_rng(n).normal(0.5, 1.0, (2000, n))
    found = [interval(row)[0] for row in values]
    hits = sum(ends[0] <= 0.5 <= ends[1] for ends in found if ends is not None)
    # Three standard errors below 0.95 are 0.935; a BCa bootstrap covers 0.89 at n = 10.
    assert hits / len(values) >= 0.935


def test_the_documented_coverage_equals_the_simulated_one():
    documented = {
        cells[0]: [float(cell) for cell in cells[1:]]
        for line in (statistics.__doc__ or "").splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in DIFFERENCES
    }
    assert list(documented) == list(DIFFERENCES)
    for kind, row in documented.items():
        assert row == pytest.approx([coverage(kind, n) for n in (3, 5, 10, 20)], abs=0.006)


def test_a_single_outlier_has_an_interval_without_a_warning():
    ends, method = interval(np.array([0.0] * 9 + [1.0]))
    assert method == "paired t, df 9"
    assert ends is not None
    assert ends[0] <= 0.1 <= ends[1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_equal_differences_are_equal_on_every_scale(scale):
    values = np.full(4, 0.1 * scale)
    values[0] = np.nextafter(values[0], np.inf)
    assert interval(values) == (None, "no interval, all differences equal")
    values[0] += 1e-3 * scale
    assert interval(values)[1] == "paired t, df 3"


def test_image_interval_by_the_formula():
    """Bonett & Price 2012: one image is added to each of the two kinds on which the arms differ."""
    left = np.array([[True] * 12 + [False] * 3 + [True] * 35])
    right = np.array([[False] * 12 + [True] * 3 + [True] * 35])
    one, other, n = 13 / 52, 4 / 52, 52
    half = stats.norm.ppf(0.975) * math.sqrt((one + other - (one - other) ** 2) / n)
    assert image_interval(left, right) == pytest.approx((one - other - half, one - other + half))


def test_equal_predictions_have_an_interval_of_positive_width():
    for images in (50, 5000):
        right = np.random.default_rng(images).random((3, images)) < 0.8
        ends = image_interval(right, right)
        assert ends is not None
        assert ends[0] == pytest.approx(-ends[1])
        assert ends[0] == pytest.approx(-stats.norm.ppf(0.975) * math.sqrt(2) / (images + 2))
    assert image_interval(np.empty((0, 5), bool), np.empty((0, 5), bool)) is None


@pytest.mark.parametrize(("images", "share", "seeds"), [(20, 0.1, 1), (50, 0.05, 3), (50, 0.3, 3), (360, 0.05, 1)])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_interval_over_images_covers_the_truth(images, share, seeds, alike):
    """The arms differ on `share` of the images, in four of five cases in favour of `left`.

    A share `alike` of the images has the same outcome at every seed.
    """
    rng, hits, repeats = np.random.default_rng(images), 0, 1500
    for _ in range(repeats):
        draws = rng.random((seeds, images))
        draws = np.where(rng.random(images) < alike, draws[0], draws)
        left, right = draws < 0.8 * share, (draws >= 0.8 * share) & (draws < share)
        ends = image_interval(left, right)
        assert ends is not None
        hits += ends[0] <= 0.6 * share <= ends[1]
    # Three standard errors below 0.94; for one seed a percentile bootstrap covers 0.79 of the first case.
    assert hits / repeats >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / repeats)


def test_with_many_images_the_interval_equals_that_of_a_bootstrap():
    rng = np.random.default_rng(5)
    left, right = rng.random((3, 3000)) < 0.8, rng.random((3, 3000)) < 0.7
    ends = image_interval(left, right)
    assert ends is not None
    per_image = (left.astype(float) - right.astype(float)).mean(0)
    means = [per_image[rng.integers(0, 3000, 3000)].mean() for _ in range(4000)]
    assert ends[0] == pytest.approx(np.quantile(means, 0.025), abs=0.002)
    assert ends[1] == pytest.approx(np.quantile(means, 0.975), abs=0.002)


def test_a_difference_pairs_seeds_and_drops_unpaired_ones():
    records = [with_accuracy("mixed", 10, s, a) for s, a in enumerate((0.70, 0.71, 0.75, 0.99))]
    records += [with_accuracy("guided", 10, s, a) for s, a in enumerate((0.72, 0.76, 0.76))]
    records += [with_accuracy("guided", 10, 3, 0.1, status="failed"), with_accuracy("guided", 5, 0, 0.1)]
    found = difference(records, "guided", "mixed", 10)
    assert found is not None
    assert (found.n, found.mean) == (3, pytest.approx((0.02 + 0.05 + 0.01) / 3))
    assert found.std == pytest.approx(np.std([0.02, 0.05, 0.01], ddof=1))
    assert found.over_images is None
    assert difference(records, "guided", "mixed", 1) is None


def test_identical_arms_have_a_difference_of_zero():
    twin = [dataclasses.replace(r, arm="guided", config_hash="g" + r.config_hash) for r in sweep(("mixed",), (10,))]
    found = difference([*sweep(("mixed",), (10,)), *twin], "guided", "mixed", 10, LABELS.tolist())
    assert found is not None
    assert (found.mean, found.std, found.over_seeds) == (0, 0, None)
    assert found.over_images is not None
    assert found.over_images[0] == pytest.approx(-found.over_images[1])
    assert found.method == "no interval, all differences equal"


def test_the_image_interval_contains_the_mean_difference():
    for found in comparisons(sweep(), LABELS.tolist()):
        assert found.over_images is not None
        assert found.over_images[0] < found.mean < found.over_images[1]


def test_arms_without_condensed_images_are_compared_at_every_ipc():
    found = [(one.left, one.right, one.ipc) for one in comparisons(sweep(ipcs=(1, 10), seeds=(0, 1)))]
    expected = [(arm, "none", ipc) for arm in ("condensed_only", "mixed", "guided", "guided_only") for ipc in (1, 10)]
    expected += [("real", "none", 0)]
    pairs = (("guided", "mixed"), ("mixed", "condensed_only"), ("guided", "condensed_only"), ("guided_only", "guided"))
    expected += [(left, right, ipc) for left, right in pairs for ipc in (1, 10)]
    assert found == expected


def test_each_arm_is_compared_with_the_baseline_and_with_none_and_no_pair_twice():
    records = sweep(("none", "mixed", "guided", "guided_only"), (5,), (0, 1))
    found = [(one.left, one.right) for one in comparisons(records, baseline="mixed")]
    assert found == [
        ("none", "mixed"),
        ("guided", "mixed"),
        ("guided_only", "mixed"),
        ("guided", "none"),
        ("guided_only", "none"),
        ("guided_only", "guided"),
    ]


def test_arms_of_any_name_are_compared_with_a_baseline_of_any_name():
    records = [make_record(arm, 0, seed) for arm in ("latest", "growing", "bank") for seed in (0, 1)]
    found = [(one.left, one.right, one.ipc) for one in comparisons(records, baseline="latest")]
    assert found == [("bank", "latest", 0), ("growing", "latest", 0)]
    assert comparisons(records, baseline="absent") == []


def test_each_arm_may_have_a_baseline_of_its_own():
    arms = ("mixed real", "mixed dm", "guided real", "guided dm")
    records = [make_record(arm, 10, 0) for arm in arms]
    own = {arm: f"{arm.split()[0]} real" for arm in arms}
    found = {(one.left, one.right) for one in comparisons(records, baseline=own)}
    with_controls = {("guided dm", "mixed dm"), ("guided real", "mixed real")}
    assert found == {("mixed dm", "mixed real"), ("guided dm", "guided real"), *with_controls}


def test_guided_arms_are_compared_with_both_controls_of_their_name():
    whole = [("guided", "mixed"), ("guided", "mixed_prior"), ("mixed_prior", "mixed")]
    for tail in ("", " fast", "_curriculum"):
        arms = [f"{arm}{tail}" for arm in ("mixed", "mixed_prior", "guided")]
        found = {(one.left, one.right) for one in comparisons([make_record(arm, 10, 0) for arm in arms])}
        assert found == {(f"{left}{tail}", f"{right}{tail}") for left, right in whole}
    records = [make_record(arm, 10, 0) for arm in ("mixed", "mixed_prior", "mmd", "trial 3", "trial 3 unguided")]
    found = {(one.left, one.right) for one in comparisons(records, baseline={"mmd": "mixed_prior"})}
    forms = {("mmd", "mixed_prior"), ("mmd", "mixed"), ("mixed_prior", "mixed")}
    assert found == {*forms, ("trial 3", "trial 3 unguided")}


def test_a_comparison_needs_both_arms():
    assert comparisons(sweep(("mixed", "guided"), (1,), (0, 1)))[0].right == "mixed"
    assert comparisons(sweep(("guided",))) == []
    assert comparisons([]) == []


def test_rankings_stay_within_one_proxy_set():
    def trial(seed: int, proxy: float, accuracy: float, ipc: int = 1):
        return make_record("guided", ipc, seed, metrics={"proxy/agreement": proxy, ACCURACY: accuracy})

    ordered = [trial(s, 0.1 * s, 0.5 + 0.01 * s) for s in range(5)]
    reverse = [trial(s, -0.1 * s, 0.9 + 0.01 * s, ipc=10) for s in range(5)]
    few = [trial(s, 0.1 * s, 0.5 + 0.01 * s, ipc=5) for s in range(3)]
    flat = [trial(s, 0.5, 0.5 + 0.01 * s, ipc=50) for s in range(5)]
    found = rankings([*ordered, *reverse, *few, *flat])
    assert [(one.ipcs, one.n) for one in found] == [((1,), 5), ((10,), 5)]
    assert [one.rho for one in found] == [pytest.approx(1.0), pytest.approx(-1.0)]
    noisy = [trial(s, p, a) for s, (p, a) in enumerate(np.random.default_rng(1).random((9, 2)).tolist())]
    (one,) = rankings(noisy)
    columns = [[r.metrics[name] for r in noisy] for name in ("proxy/agreement", ACCURACY)]
    assert one.rho == pytest.approx(stats.spearmanr(columns[0], columns[1])[0])


def pairs(gains: list[float], arm: str = "mixed"):
    records = [make_record("none", 0, s, metrics={ACCURACY: 0.5}, predictions=[]) for s in range(len(gains))]
    return records + [make_record(arm, 5, s, metrics={ACCURACY: 0.5 + g}, predictions=[]) for s, g in enumerate(gains)]


def test_p_equals_that_of_the_paired_t_test():
    gains = [0.02, 0.05, -0.01, 0.04]
    found = difference(pairs(gains), "mixed", "none", 5)
    assert found is not None
    assert p_value(found) == pytest.approx(stats.ttest_1samp(gains, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize("gains", [[0.02], [0.02, 0.02, 0.02]])
def test_no_p_without_a_spread(gains):
    found = difference(pairs(gains), "mixed", "none", 5)
    assert found is not None
    assert p_value(found) is None
    assert chance(None) == "-"


def test_p_is_below_5_percent_exactly_if_the_interval_excludes_0():
    rng, sides = np.random.default_rng(0), set()
    for n in (2, 3, 5, 10, 20):
        for _ in range(40):
            found = difference(pairs(rng.normal(0.01, 0.02, n).tolist()), "mixed", "none", 5)
            assert found is not None
            assert found.over_seeds is not None
            p = p_value(found)
            assert p is not None
            sides.add(p < 0.05)
            assert (p < 0.05) == (not found.over_seeds[0] <= 0 <= found.over_seeds[1])
    assert sides == {True, False}


def test_no_p_where_there_is_no_interval():
    # The differences are equal except for rounding in the last bit; their deviation is not exactly 0.
    found = difference(pairs([0.3 - 0.1, 0.2, 0.2, 0.1 + 0.1]), "mixed", "none", 5)
    assert found is not None
    assert found.over_seeds is None
    assert p_value(found) is None
    # With slightly more than rounding there are both an interval and a p, or neither.
    found = difference(pairs([0.2, 0.2, 0.2, 0.2 + 1.5e-12]), "mixed", "none", 5)
    assert found is not None
    assert (found.over_seeds is None) == (p_value(found) is None)


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


def test_p_is_corrected_for_the_arms_compared_with_the_same_arm():
    mixed, guided, even = [0.02, 0.05, -0.01, 0.04], [0.3, 0.28, 0.31, 0.33], [0.1, 0.1, 0.1, 0.1]
    many = [*pairs(mixed), *pairs(guided, "guided")[4:], *pairs(even, "condensed_only")[4:]]
    compared = comparisons(many)
    found = {(one.left, one.right): one.p for one in judged(compared)}
    alone = [stats.ttest_1samp(gains, 0).pvalue for gains in (mixed, guided)]
    # Of the three arms compared with none, the constant one has no p; guided - mixed is corrected separately.
    assert found["condensed_only", "none"] is None
    assert found["guided", "none"] == pytest.approx(2 * alone[1], rel=1e-6)
    assert found["mixed", "none"] == pytest.approx(alone[0], rel=1e-6)
    between = [a - b for a, b in zip(guided, mixed, strict=True)]
    assert found["guided", "mixed"] == pytest.approx(stats.ttest_1samp(between, 0).pvalue, rel=1e-6)


def test_p_is_corrected_within_each_ipc():
    records = pairs([0.02, 0.05, -0.01, 0.04])
    records += [replace(record, ipc=10) for record in records if record.ipc]
    compared = comparisons(records)
    assert [one.ipc for one in compared] == [5, 10]
    assert [one.p for one in judged(compared)] == [p_value(one) for one in compared]
