"""Objectives and limits of a search, and their values in the study."""

import math

import optuna
import pytest

from condkd_ray.core.method import InputError
from condkd_ray.study.objective import Objective, check_task, excesses, feasible, parse_constraints
from condkd_ray.study.storage import open_storage
from study.test_study import CONDITIONAL, study

LIMITS = parse_constraints(["memory/bytes <= 2e6", "proxy/agreement>=0.5"])
KEEPS = [{"round": 1, "proxy/agreement": 0.75, "memory/bytes": 10**6}]
BREAKS = [{"round": 1, "proxy/agreement": 0.25, "memory/bytes": 3 * 10**6}]
HISTORY = [
    {"round": 1, "proxy/agreement": 0.5, "time/wall_seconds": 2.0, "memory/bytes": 10},
    {"round": 2, "time/wall_seconds": 3.0, "memory/bytes": 20},
]


@pytest.mark.parametrize("name", ["student/test_accuracy", "student/test_accuracy_best", "student/test_miou"])
def test_test_accuracy_is_refused_with_the_reason(name):
    with pytest.raises(InputError, match=f"objective is '{name}'; accepted: proxy/agreement .*selection by test"):
        Objective((name,))
    with pytest.raises(InputError, match="selection by test"):
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
def test_unknown_and_repeated_names_of_objectives_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        Objective(names)


def test_values_are_the_last_quality_the_sum_of_seconds_and_the_last_bytes():
    objective = Objective(("proxy/agreement", "time/wall_seconds", "memory/bytes"))
    assert objective.values(HISTORY) == [0.5, 5.0, 20]
    assert objective.directions == ["maximize", "minimize", "minimize"]
    assert math.isnan(Objective(("proxy/kl",)).values(HISTORY)[0])


def test_the_quality_after_a_round_without_a_measurement_is_none():
    assert [Objective().now(metrics) for metrics in HISTORY] == [0.5, None]


def test_the_excess_of_a_trial_over_each_limit():
    assert excesses(LIMITS, KEEPS) == {"memory/bytes<=2e+06": -(10**6), "proxy/agreement>=0.5": -0.25}
    assert excesses(LIMITS, BREAKS) == {"memory/bytes<=2e+06": 10**6, "proxy/agreement>=0.5": 0.25}
    (seconds,) = parse_constraints(["time/wall_seconds<=30"])
    assert seconds.excess(31) == 1
    assert [feasible(LIMITS, history) for history in (KEEPS, BREAKS, [])] == [True, False, False]


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("0.50", "0.5"),
        ("50000000", "5e+07"),
        ("2e6", "2e+06"),
        ("1234567", "1234567.0"),
        ("0.12345678", "0.12345678"),
        ("-1e-9", "-1e-09"),
    ],
)
def test_the_text_of_a_limit_is_short_and_exact(limit: str, text: str):
    [one] = parse_constraints([f"memory/bytes <= {limit}"])
    assert one.text == f"memory/bytes<={text}"
    assert parse_constraints([one.text]) == (one,)
    assert one.limit == float(limit)


def test_a_metric_that_was_not_measured_satisfies_no_limit():
    assert [one.allows(math.nan) for one in LIMITS] == [False, False]
    assert [one.allows(one.limit) for one in LIMITS] == [True, True]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["student/test_accuracy>=0.9"], "--constraint is 'student/test_accuracy>=0.9'; accepted: .*selection by test"),
        (["memory/bytes"], "--constraint is 'memory/bytes'; accepted: NAME<=NUMBER or NAME>=NUMBER"),
        (["memory/bytes<2"], "--constraint is 'memory/bytes<2'; accepted: NAME<=NUMBER"),
        (["memory/bytes<=2MB"], "--constraint is 'memory/bytes<=2MB'; accepted: NAME<=NUMBER"),
        (["memory/bytes<=nan"], "accepted: NAME<=NUMBER"),
        (["loss<=1"], "--constraint is 'loss<=1'; accepted: .*time/wall_seconds, time/cpu_seconds, memory/bytes"),
        (["memory/bytes<=1", "memory/bytes<=2"], "accepted: one limit of a kind for each name"),
    ],
)
def test_an_invalid_limit_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        parse_constraints(texts)


@pytest.mark.parametrize(
    ("task", "own", "other"),
    [
        ("classification", "student/val_accuracy", "student/val_miou"),
        ("segmentation", "student/val_miou", "student/val_accuracy"),
    ],
)
def test_the_validation_score_of_another_task_is_refused(task, own, other):
    assert Objective((own,)).directions == ["maximize"]
    check_task(("proxy/agreement", own, "memory/bytes"), task)
    message = rf"is '{other}'; accepted: proxy/agreement .*, proxy/kl .*, {own} \(max\.\) on data for {task}"
    with pytest.raises(InputError, match=message):
        check_task(("proxy/agreement", other), task)


@pytest.mark.parametrize("sampler", ["random", "qmc", "grid"])
def test_a_sampler_that_ignores_limits_is_refused(tmp_path, sampler):
    with pytest.raises(InputError, match=f"--sampler is '{sampler} with --constraint'; accepted: tpe, gp"):
        study(tmp_path, sampler=sampler, constraints=LIMITS)
    assert optuna.get_all_study_names(open_storage(None, tmp_path)) == []


def ended(found, value: float, history) -> int:
    number = found.propose().number
    found.constrain(number, excesses(LIMITS, history))
    found.complete(number, [value])
    return number


def test_the_best_trial_is_within_all_limits_and_each_trial_has_its_excess(tmp_path):
    found = study(tmp_path, constraints=LIMITS)
    ended(found, 0.9, BREAKS)
    assert found.ranked == [] == found.front
    kept = ended(found, 0.6, KEEPS)
    assert [trial.number for trial in found.ranked] == [kept] == [trial.number for trial in found.front]
    stored = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path))
    assert stored.best_trial.number == kept
    broken, fine = stored.trials
    assert broken.constraints == {"memory/bytes<=2e+06": 10**6, "proxy/agreement>=0.5": 0.25}
    assert (broken.user_attrs["feasible"], fine.user_attrs["feasible"]) == (False, True)
    assert broken.user_attrs["beyond"] == broken.constraints
    # When another driver reports other excesses, the first ones stay.
    again = study(tmp_path, constraints=LIMITS)
    again.constrain(0, excesses(LIMITS, KEEPS))
    assert again.trials[0].constraints == broken.constraints


def test_the_front_of_several_objectives_is_within_all_limits(tmp_path):
    found = study(tmp_path, objective=("proxy/agreement", "memory/bytes"), constraints=LIMITS)
    for values, history in (([0.9, 3e6], BREAKS), ([0.8, 1e6], KEEPS)):
        number = found.propose().number
        found.constrain(number, excesses(LIMITS, history))
        found.complete(number, values)
    assert [trial.values for trial in found.front] == [[0.8, 1e6]]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns_to_propose_trials_within_a_limit(tmp_path, sampler):
    """The best trials are beyond the limit, so with the limit more proposals lie within it than without."""

    def within(folder, constraints) -> float:
        found = study(folder, sampler=sampler, constraints=constraints)
        weights = []
        # Without a limit, a Gaussian process soon proposes only the best end of the range again.
        while len(weights) < 20 and (proposal := found.propose()) is not None:
            weights.append(weight := proposal.config.inversion.bn_weight)
            found.constrain(proposal.number, {one.text: weight - 2.0 for one in constraints})
            found.complete(proposal.number, [weight / 100])
        return sum(weight <= 2 for weight in weights) / len(weights)

    assert within(tmp_path / "limited", LIMITS[:1]) > within(tmp_path / "free", ())


def test_a_repeat_is_as_feasible_as_the_first_trial(tmp_path):
    found = study(tmp_path, "{data: {name: digits}, rounds: !choice [1, 2]}", constraints=LIMITS)
    for _ in range(2):
        ended(found, 0.9, BREAKS)
    assert found.propose() is None
    assert {trial.user_attrs.get("feasible", False) for trial in found.trials} == {False}
    assert all(trial.constraints == found.trials[0].constraints for trial in found.trials)


def test_a_study_with_other_limits_is_refused(tmp_path):
    study(tmp_path, constraints=LIMITS)
    with pytest.raises(InputError, match="study 's' was made for other constraints, "):
        study(tmp_path)
    study(tmp_path / "none")
    with pytest.raises(InputError, match=r"was made for other constraints, \[\]; accepted: the same constraints"):
        study(tmp_path / "none", constraints=LIMITS)


def test_a_study_with_a_limit_that_differs_after_six_digits_is_refused(tmp_path):
    study(tmp_path, constraints=parse_constraints(["memory/bytes<=1234567"]))
    study(tmp_path, constraints=parse_constraints(["memory/bytes<=1.234567e6"]))
    with pytest.raises(InputError, match=r'constraints, \["memory/bytes<=1234567.0"\]; accepted: the same'):
        study(tmp_path, constraints=parse_constraints(["memory/bytes<=1234568"]))


@pytest.mark.parametrize(("limit", "earlier"), [("50000000", "5e+07"), ("1234567", "1.23457e+06")])
def test_a_study_that_stores_its_limit_with_six_digits_is_continued(tmp_path, logged, limit: str, earlier: str):
    limits = parse_constraints([f"memory/bytes<={limit}"])
    first = study(tmp_path, constraints=limits)
    first._study.set_user_attr("constraints", [f"memory/bytes<={earlier}"])
    assert study(tmp_path, constraints=limits).propose() is not None
    noted = [line for line in logged if line.startswith("study 's' is continued with constraints [")]
    assert len(noted) == (earlier == "1.23457e+06")
    with pytest.raises(InputError, match="was made for other constraints"):
        study(tmp_path, constraints=parse_constraints(["memory/bytes<=7"]))


def test_only_trials_with_values_of_the_limits_are_learnt_from_an_earlier_study(tmp_path):
    earlier = study(tmp_path / "a")
    for attributes in ({"memory/bytes": 3e6}, {}):
        number = earlier.propose().number
        earlier.note(number, attributes)
        earlier.complete(number, [0.9])
    other = optuna.load_study(study_name="s", storage=open_storage(None, tmp_path / "a"))
    found = study(tmp_path / "b", constraints=LIMITS)
    assert found.learn_from(other) == 1
    assert found.trials[0].constraints == {"memory/bytes<=2e+06": 10**6, "proxy/agreement>=0.5": -0.4}


def test_conditional_spaces_can_be_limited(tmp_path):
    found = study(tmp_path, CONDITIONAL, constraints=LIMITS)
    for place in range(12):
        ended(found, place / 12, KEEPS if place % 2 else BREAKS)
    assert len(found.finished) == 12
