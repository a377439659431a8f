from types import SimpleNamespace

import pytest

from condkd_ray.cluster.sweep import Monitor
from condkd_ray.commands.console.exit_codes import speak


@pytest.fixture(params=[True, False])
def verbose(request):
    speak(request.param)
    yield request.param
    speak(False)


def test_where_a_trial_runs_is_told_once_a_place_to_who_wants_to_know(verbose, capsys):
    rounds = []
    observer = SimpleNamespace(round=lambda _, metrics: rounds.append(metrics))
    monitor = Monitor(None, observer)  # type: ignore[arg-type]
    monitor.add(SimpleNamespace(key="a", label="trial 0", place=("trial", "a")))  # type: ignore[arg-type]
    for number, node in ((1, "one"), (2, "one"), (3, "two")):
        monitor.heard("a", {"round": number, "kd/loss": 0.5, "hostname": node, "pid": 7})
    assert rounds == [{"round": number, "kd/loss": 0.5} for number in (1, 2, 3)]
    told = "trial 0 runs on one, process 7\ntrial 0 runs on two, process 7\n"
    assert capsys.readouterr().err == (told if verbose else "")
