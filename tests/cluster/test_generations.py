"""Trials that pause, and trials that continue from their state and samples: on the cluster as in one process."""

import os
import signal
from dataclasses import dataclass, field
from typing import Literal

import pytest
import toy

from cluster import processes
from cluster.drivers import direct, timeless
from cluster.test_search import Plain
from cluster.test_sweep import planned
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.search import search
from condkd_ray.core.records import Outcome
from condkd_ray.trial.plan import PlannedTrial

CONFIGS = {key: toy.toy_config(seed=seed, rounds=6) for seed, key in enumerate("ab")}


@dataclass
class Generations(Plain):
    """A driver of three generations of two rounds; each begins when both trials have ended the one before."""

    rests: list[str] = field(default_factory=list)
    generation: int = 0

    def propose(self) -> PlannedTrial | Literal["later"] | None:
        if not self.left and len(self.rests) < 2 and self.generation < 2:
            return "later"
        if not self.left and self.generation < 2:
            self.left, self.rests, self.generation = list(self.configs), [], self.generation + 1
        if not self.left:
            return None
        name, now = self.left.pop(0), self.generation
        return planned(
            f"{name}{now}",
            self.configs[name],
            parent=f"{name}{now - 1}" if now else "",
            pause_after=2 * now + 2 if now < 2 else None,
            deletes=(f"{name}{now - 2}",) if now == 2 else (),
        )

    def rested(self, trial: PlannedTrial) -> None:
        self.rests.append(trial.key)


def assert_equal(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.predictions == expected.predictions
    # Except test metrics, which a trial of a search computes only at its end.
    blind = [{name: value for name, value in row.items() if "test" not in name} for row in expected.history]
    assert timeless(outcome.history) == timeless(blind)


@pytest.mark.slow
def test_trials_run_in_generations_give_the_same_numbers_as_one_run(cluster, tmp_path):
    guide = Generations(CONFIGS)
    assert search(guide, ClusterOptions(folder=tmp_path, checkpoint_seconds=1000))
    for name, config in CONFIGS.items():
        assert_equal(guide.outcomes[f"{name}2"], direct(config))
        # The rounds of the parent are reported again: they belong to the history of the trial.
        assert [metrics["round"] for metrics in guide.rounds[f"{name}1"]] == [1, 2, 3, 4]
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {"a1", "b1"}
    assert {path.name for path in (tmp_path / "chunks").glob("*/")} == {"a1", "b1"}


@pytest.mark.slow
def test_trials_killed_in_their_generations_give_the_same_numbers(cluster, tmp_path):
    class Hit(Generations):
        def round(self, trial, metrics) -> None:
            super().round(trial, metrics)
            if (trial.key, metrics["round"]) in (("a0", 1), ("b1", 3), ("a2", 5)):
                for pid in processes.of_ray("ImplicitFunc"):
                    os.kill(pid, signal.SIGKILL)

    guide = Hit(CONFIGS)
    assert search(guide, ClusterOptions(folder=tmp_path, checkpoint_seconds=0, max_concurrent=1))
    for name, config in CONFIGS.items():
        assert_equal(guide.outcomes[f"{name}2"], direct(config))
