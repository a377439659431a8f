from math import nan

import pytest

from condkd_ray.core.view import SILENT, Best, Goal


def test_the_silent_view_prints_nothing(capfd):
    with SILENT.bar("training") as on_step:
        on_step(1, 2)
    trials = SILENT.trials(2, best=Best("trial 0", 0.5))
    trials.round("a", "mixed seed 0", {"round": 1, "proxy/agreement": 0.5}, 4)
    trials.finished("a", "mixed seed 0", "finished", 0.9, group="mixed", leaves={"weight": 1.0})
    trials.finished("b", "mixed seed 1", "failed", None)
    trials.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("larger", "value", "other", "better"), [
    (True, 0.6, 0.5, True), (True, 0.5, 0.5, False), (False, 0.4, 0.5, True), (False, 0.6, 0.5, False),
    (True, 0.1, None, True), (False, 0.9, None, True), (True, nan, 0.5, False),
])  # fmt: skip
def test_a_goal_compares_values(larger, value, other, better):
    assert Goal("proxy/kl", larger).better(value, other) is better
