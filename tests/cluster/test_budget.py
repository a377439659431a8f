"""GPU time as a budget: how it is counted, and what a search does when it is spent."""

import pytest
import toy
from test_searching import Plain

from condkd_ray import state as states
from condkd_ray.cluster.budget import GpuBudget
from condkd_ray.cluster.searching import search
from condkd_ray.cluster.terms import Terms
from condkd_ray.cluster.trials import Trial
from condkd_ray.method import Metrics
from condkd_ray.trial import start


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_gpus_count_for_as_long_as_they_are_held():
    clock, kept = Clock(), []
    budget = GpuBudget(10.0, 1.0, kept.append, clock)
    budget.hold("a", 0.5)
    budget.hold("b", 2.0)
    clock.now = 2.0
    assert budget.used == 1.0 + 0.5 * 2 + 2.0 * 2
    assert not budget.spent
    budget.release("b")
    budget.release("b")
    clock.now = 4.0
    # A trial that was started again without a word of its end holds them once.
    budget.hold("a", 0.5)
    assert budget.used == pytest.approx(7.0)
    assert kept == []
    clock.now = 10.0
    assert budget.spent
    assert kept == [10.0]
    clock.now = 11.0
    budget.close()
    clock.now = 20.0
    assert budget.used == kept[-1] == 10.5


def test_once_it_is_spent_nothing_is_proposed_and_what_runs_stops_after_a_round(cluster, tmp_path):
    clock = Clock()

    class Counting(Plain):
        """A round takes a second of that clock."""

        def round(self, trial: Trial, metrics: Metrics) -> None:
            super().round(trial, metrics)
            clock.now += 1.0

    kept: list[float] = []
    guide = Counting({key: toy.toy_config(seed=seed, rounds=5000) for seed, key in enumerate("abc")})
    budget = GpuBudget(4.0, 1.0, kept.append, clock)
    assert not search(guide, Terms(folder=tmp_path, gpus_per_trial=1, max_concurrent=1, gpu_budget=budget))
    assert guide.outcomes == {}
    assert guide.heard == [("propose", "a")]
    assert kept[-1] == budget.used == 1.0 + len(guide.rounds["a"]) >= 4.0
    # Where it stopped it goes on: no round is lost.
    path = tmp_path / "trials" / "a" / "state.safetensors"
    stood = states.load(start(guide.configs["a"], toy.make_prepared()), path)
    assert stood.round == len(guide.rounds["a"])
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["a"]


def test_a_budget_that_is_spent_before_starts_nothing(cluster, tmp_path):
    guide = Plain({"a": toy.toy_config(rounds=1)})
    assert not search(guide, Terms(folder=tmp_path, gpus_per_trial=1, gpu_budget=GpuBudget(3.0, 4.0)))
    assert guide.heard == []
