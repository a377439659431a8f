"""The sections that the pages of experiments and of searches have in common."""

import pytest

from condkd_ray.report.figures.style import arm_styles
from condkd_ray.report.page.elements import Bars, Code, Picture, Rows, Text
from condkd_ray.report.page.sections import cost, environment, failed_trials, proxy, repeat
from condkd_ray.report.statistics import ACCURACY
from report.report_factory import altered, make_manifest, make_record, results, sweep

SEARCH = {"objective": ["proxy/agreement"], "directions": ["maximize"], "parameters": []}


def scored(seed: int, value: float, *, proxy_hash: str = "p"):
    """A trial with this value of the proxy, and a test accuracy that grows with it."""
    metrics = {"proxy/agreement": value, ACCURACY: 0.5 + value / 10}
    return make_record("trial", 5, seed, metrics=metrics, proxy_hash=proxy_hash)


def proxy_section(records):
    return proxy(results(records, make_manifest(records, search=SEARCH)), arm_styles(["trial"]))


def texts(section) -> list[str]:
    return [element.text for element in section.elements if isinstance(element, Text)]


def test_the_rank_correlation_of_one_proxy_set_is_given_with_its_trials():
    section = proxy_section([scored(seed, seed / 10) for seed in range(5)])
    rho, note = texts(section)
    assert rho == "Spearman's rho of proxy/agreement with test accuracy: +1.00 over 5 trials of one proxy set."
    assert note.startswith("All choices are made by the proxy alone.")
    (picture,) = [element for element in section.elements if isinstance(element, Picture)]
    assert picture.words == "proxy/agreement against test accuracy"


def test_several_proxy_sets_have_the_median_and_range_of_their_correlations():
    records = [scored(seed, seed / 10) for seed in range(5)]
    records += [scored(seed + 5, seed / 10, proxy_hash="other") for seed in range(4)]
    falling = [scored(seed + 9, seed / 10, proxy_hash="third") for seed in range(4)]
    records += [altered(r, metrics=r.metrics | {ACCURACY: 1 - r.metrics["proxy/agreement"]}) for r in falling]
    assert texts(proxy_section(records))[0] == (
        "Spearman's rho of proxy/agreement with test accuracy within a proxy set: median +1.00, -1.00 to +1.00 over "
        "3 proxy sets, 13 trials."
    )


def test_too_few_trials_have_no_correlation_and_no_trial_has_no_section():
    assert texts(proxy_section([scored(seed, seed / 10) for seed in range(3)]))[0] == (
        "No rho: fewer than four trials share a proxy set, or all values are equal."
    )
    assert proxy_section([]).elements == []


def timed(arm: str, seed: int, **seconds: float):
    metrics = {f"time/{phase}_seconds": value for phase, value in seconds.items()}
    return make_record(arm, 5, seed, metrics=metrics | {"student/test_accuracy": 0.5})


def test_bars_are_mean_seconds_in_percent_of_the_longest_row():
    groups = {
        "long": [timed("a", 0, inversion=6, distillation=3, wall=10), timed("a", 1, inversion=8, distillation=3)],
        "short": [timed("b", 0, inversion=2, wall=3)],
        "empty": [],
    }
    bars, rows = cost(groups).elements
    assert isinstance(bars, Bars)
    assert isinstance(rows, Rows)
    assert bars.parts == ["distillation", "inversion"]
    assert [(label, [pytest.approx(x) for x in parts]) for label, parts, _ in bars.rows] == [
        ("long", [30, 70]),
        ("short", [0, 20]),
    ]
    assert [text for _, _, text in bars.rows] == ["10 s", "2 s"]
    assert rows.table.header == ["trials", "n", "distillation (s)", "inversion (s)", "wall (s)", "CPU (s)"]
    assert rows.table.rows == [
        ["long", "2", "3.00", "7.00", "10.00", "-"],
        ["short", "1", "0.00", "2.00", "3.00", "-"],
    ]
    assert "waiting for Ray" not in rows.table.legend


def test_time_on_the_cluster_is_explained_and_without_times_there_is_no_section():
    (_, rows) = cost({"all": [timed("a", 0, cluster=1)]}).elements
    assert rows.table.legend.endswith("Cluster: waiting for Ray.")
    assert cost({"all": [timed("a", 0, wall=5, cpu=4)]}).elements == []
    assert cost({}).elements == []


def test_failures_are_shown_as_in_the_terminal():
    records = [make_record(), make_record(seed=1, status="failed", reason="round 2: NaN")]
    (shown,) = failed_trials(results(records)).elements
    assert isinstance(shown, Code)
    assert shown.text.startswith("1 of 2 trials failed")
    assert "round 2: NaN" in shown.text
    assert failed_trials(results(records[:1])).elements == []


def test_the_command_stands_with_versions_hashes_and_the_start():
    records = sweep(("mixed", "guided"), (5,), (0, 1))
    code, _, rows = repeat(results(records)).elements
    assert code == Code(make_manifest().command)
    found = dict(rows.table.rows)
    assert (found["torch"], found["node"], found["threads"]) == ("2.15.0", "node", "1")
    assert (found["data hash"], found["teacher hash"], found["started"]) == ("d", "t", make_manifest().created)


def test_values_that_differ_stand_with_their_numbers_of_trials():
    records = [make_record(seed=seed, node=node) for seed, node in enumerate(("far", "near", "near"))]
    found = environment([*records, make_record(seed=3, node="")])
    assert found["node"] == "far (1 trials), near (2 trials)"
    assert found["torch"] == "2.15.0"
    assert environment([]) == {}
