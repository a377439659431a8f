"""What experiments plan, and the scopes of sharing their flags ask for."""

from dataclasses import replace

import pytest
import toy

from condkd_ray.core.method import InputError
from condkd_ray.runs.experiment import scoped, scoped_baseline
from condkd_ray.runs.presets import spread
from condkd_ray.trial.plan import Plan, trial_hash

PLANS = [Plan(arm, 0, 0, toy.toy_config()) for arm in ("none", "mixed", "guided")]


def test_a_plan_without_a_scope_gets_that_of_the_flags():
    assert [scoped(plan, "trial") for plan in PLANS] == PLANS
    assert {(plan.arm, plan.scope) for plan in (scoped(plan, "inversion") for plan in PLANS)} == {
        ("none", "inversion"),
        ("mixed", "inversion"),
        ("guided", "inversion"),
    }
    own = Plan("a", 0, 0, toy.toy_config(), "inversion")
    assert scoped(own, "sweep") == own


def test_what_draws_from_others_is_an_arm_of_its_own_and_compared_with_its_like():
    assert scoped(PLANS[1], "sweep").arm == "mixed (sweep's pool)"
    for given in ("none", {"guided": "mixed"}):
        baseline = scoped_baseline(given, PLANS, "sweep")
        assert baseline["mixed (sweep's pool)"] == "none (sweep's pool)"
        assert baseline["mixed"] == "none"
        expected = "none" if given == "none" else "mixed"
        assert baseline["guided (sweep's pool)"] == f"{expected} (sweep's pool)"
    assert scoped_baseline("none", PLANS, "inversion") == "none"


def test_seeds_are_spread_over_teachers_in_turn_and_nothing_else_changes():
    plans = [Plan(arm, 0, seed, toy.toy_config(seed=seed)) for arm in ("none", "mixed") for seed in (7, 3, 5)]
    assert spread(plans, (7, 3, 5), 1) == plans
    found = spread(iter(plans), (7, 3, 5), 2)
    assert [(plan.seed, plan.config.teacher.seed) for plan in found] == [(7, 0), (3, 1), (5, 0)] * 2
    assert [plan.config.data.seed for plan in found] == [0] * 6
    back = [replace(plan, config=replace(plan.config, teacher=plans[0].config.teacher)) for plan in found]
    assert back == plans
    own = replace(plans[0], config=replace(plans[0].config, teacher=replace(plans[0].config.teacher, seed=4)))
    assert [plan.config.teacher.seed for plan in spread([own, plans[1]], (7, 3), 2)] == [4, 1]


def test_teachers_that_cannot_be_are_refused(tmp_path):
    plans = [Plan("mixed", 0, seed, toy.toy_config(seed=seed)) for seed in (0, 1)]
    for teachers in (0, -1, 3):
        with pytest.raises(InputError, match=f"--teachers is {teachers}; accepted: 1 to 2, the number of --seeds"):
            spread(plans, (0, 1), teachers)
    with pytest.raises(InputError, match="--teachers is 2; accepted: 1 to 1, the number of --seeds"):
        spread(plans[:1], (0, 0), 2)
    with pytest.raises(InputError, match="--teachers is 2; accepted: 1: this experiment does not run each of --seeds"):
        spread(plans, (0, 1, 2), 2)
    loaded = replace(plans[0].config, teacher=replace(plans[0].config.teacher, weights=tmp_path / "w.pt"))
    with pytest.raises(InputError, match=r"--teachers with --teacher-weights .*w.pt is 2; accepted: 1, that of the fi"):
        spread([replace(plans[0], config=loaded), plans[1]], (0, 1), 2)


def test_the_scope_is_part_of_a_trials_name():
    config, prepared = toy.toy_config(), toy.make_prepared()
    names = {trial_hash(config, prepared, scope) for scope in ("trial", "inversion", "sweep")}
    assert len(names) == 3
    assert trial_hash(config, prepared) in names
