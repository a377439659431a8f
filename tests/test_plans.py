"""What experiments plan, and the scopes of sharing their flags ask for."""

import toy

from condkd_ray.identity import trial_hash
from condkd_ray.plans import Plan, scoped, scoped_baseline

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


def test_the_scope_is_part_of_a_trials_name():
    config, prepared = toy.toy_config(), toy.make_prepared()
    names = {trial_hash(config, prepared, scope) for scope in ("trial", "inversion", "sweep")}
    assert len(names) == 3
    assert trial_hash(config, prepared) in names
