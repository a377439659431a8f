import inspect
from math import nan

import pytest

from condkd_ray.commands.console.live import TERMINAL, Live
from condkd_ray.core.view import SILENT, Best, Goal, Silent, TrialsView, View


def test_the_silent_view_prints_nothing(capfd):
    with SILENT.bar("training") as on_step:
        on_step(1, 2)
    trials = SILENT.trials(2, best=Best("trial 0", 0.5))
    trials.round("a", "mixed seed 0", {"round": 1, "proxy/agreement": 0.5}, 4)
    trials.finished("a", "mixed seed 0", "finished", 0.9, group="mixed", leaves={"weight": 1.0})
    trials.finished("b", "mixed seed 1", "failed", None)
    trials.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("view", [SILENT, TERMINAL], ids=["silent", "terminal"])
@pytest.mark.parametrize("name", ["bar", "trials"])
def test_views_have_the_parameters_of_their_protocol(view, name):
    assert (
        list(inspect.signature(getattr(view, name)).parameters)
        == list(inspect.signature(getattr(View, name)).parameters)[1:]
    )


@pytest.mark.parametrize("kind", [Silent, Live])
def test_the_trials_of_a_view_have_the_parameters_of_their_protocol(kind):
    for name in ("round", "finished", "close"):
        given = inspect.signature(getattr(TrialsView, name))
        values = {key: None for key in given.parameters}
        inspect.signature(getattr(kind, name)).bind(*(None for key in values if key not in ("group", "leaves")))
        if name == "finished":
            inspect.signature(getattr(kind, name)).bind(*(None,) * 5, group="", leaves={})


@pytest.mark.parametrize(("larger", "value", "other", "better"), [
    (True, 0.6, 0.5, True), (True, 0.5, 0.5, False), (False, 0.4, 0.5, True), (False, 0.6, 0.5, False),
    (True, 0.1, None, True), (False, 0.9, None, True), (True, nan, 0.5, False),
])  # fmt: skip
def test_a_goal_compares_values(larger, value, other, better):
    assert Goal("proxy/kl", larger).better(value, other) is better
