"""A search on the cluster: proposed trials run, poor ones are stopped, and test images are used last."""

import contextlib
import os
import signal
from dataclasses import dataclass, field
from types import SimpleNamespace

import optuna
import pytest
import toy

from cluster import processes
from cluster.drivers import direct
from cluster.test_sweep import diverging, planned
from condkd_ray.cluster import memory_shortage
from condkd_ray.cluster import search as module
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.search import GpuBudget, search
from condkd_ray.commands import search as command
from condkd_ray.core import checkpoint as states
from condkd_ray.core.method import InputError, Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.runs import search as searches
from condkd_ray.study.space import parse
from condkd_ray.study.storage import open_storage
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.loop import start
from condkd_ray.trial.plan import PlannedTrial


@dataclass
class Plain:
    """A driver that proposes given trials, stops some after some rounds, and keeps all reports."""

    configs: dict[str, TrialConfig]
    stops: dict[str, int] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    rounds: dict[str, list[Metrics]] = field(default_factory=dict)
    before_test: dict[str, Outcome] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = list(self.configs)

    def propose(self) -> PlannedTrial | None:
        if not self.left:
            return None
        key = self.left.pop(0)
        self.events.append(("propose", key))
        return planned(key, self.configs[key])

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        self.rounds.setdefault(trial.key, []).append(metrics)

    def goes_on(self, trial: PlannedTrial) -> bool:
        return len(self.rounds.get(trial.key, [])) != self.stops.get(trial.key)

    def untested(self, trial: PlannedTrial, outcome: Outcome) -> None:
        self.events.append(("untested", trial.key))
        self.before_test[trial.key] = outcome

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        self.events.append(("ended", trial.key))
        self.outcomes[trial.key] = outcome


@pytest.mark.slow
def test_each_proposed_trial_is_reported_first_and_tested_once_at_its_end(cluster, tmp_path):
    configs = {key: toy.toy_config(seed=seed, rounds=3) for seed, key in enumerate("abc")}
    configs["nan"] = diverging(rounds=2)
    guide = Plain(configs | {"poor": toy.toy_config(seed=9, rounds=1000)}, stops={"poor": 2})
    assert search(guide, ClusterOptions(folder=tmp_path))
    assert [key for what, key in guide.events if what == "propose"] == [*"abc", "nan", "poor"]
    for key in "abc":
        assert guide.events.index(("untested", key)) < guide.events.index(("ended", key))
        assert not any("test" in name for metrics in guide.rounds[key] for name in metrics)
        assert not any("test" in name for name in guide.before_test[key].metrics)
        assert guide.before_test[key].predictions == []
        expected = direct(configs[key])
        assert guide.outcomes[key].predictions == expected.predictions
        assert guide.outcomes[key].metrics["student/test_accuracy"] == expected.metrics["student/test_accuracy"]
        assert guide.outcomes[key].metrics["proxy/agreement"] == expected.metrics["proxy/agreement"]
    assert guide.outcomes["poor"].status == "pruned"
    assert len(guide.outcomes["poor"].history) == len(guide.rounds["poor"]) == 2
    assert guide.outcomes["nan"].status == "failed"
    assert guide.outcomes["nan"].reason == "round 1: loss term kd/loss is not finite at step 2"
    assert [path for name in ("trials", "chunks", "tune") for path in (tmp_path / name).glob("*/")] == []


@pytest.mark.slow
def test_killed_processes_do_not_change_the_numbers(cluster, tmp_path):
    configs = {key: toy.toy_config(seed=seed, rounds=6) for seed, key in enumerate("ab")}
    killed = []

    class Hit(Plain):
        def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
            super().round(trial, metrics)
            if trial.key == "a" and metrics["round"] == 2:
                killed.extend(pid for name in ("JobTable", "ImplicitFunc") for pid in processes.of_ray(name))
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    guide = Hit(configs)
    assert search(guide, ClusterOptions(folder=tmp_path, checkpoint_seconds=0, max_concurrent=1))
    assert len(killed) >= 2
    for key in "ab":
        # A round is reported once, although it was computed more than once.
        assert [metrics["round"] for metrics in guide.rounds[key]] == [1, 2, 3, 4, 5, 6]
        expected = direct(configs[key])
        assert guide.outcomes[key].predictions == expected.predictions


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, None])
def test_a_process_that_dies_between_two_trials_fails_none_of_them(cluster, tmp_path, caplog, most):
    configs = {key: toy.toy_config(seed=seed, rounds=3) for seed, key in enumerate("abc")}

    class Killing(Plain):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            if len(self.outcomes) == 1:
                # The next trial gets one of these processes: Tune counts its death as the end of all retries.
                for pid in processes.of_ray("ImplicitFunc"):
                    os.kill(pid, signal.SIGKILL)

    guide = Killing(configs)
    with caplog.at_level("INFO", "condkd_ray"):
        assert search(guide, ClusterOptions(folder=tmp_path, checkpoint_seconds=0, max_concurrent=most))
    assert "its process died" in caplog.text
    assert [key for what, key in guide.events if what == "propose"] == [*"abc"]
    for key, config in configs.items():
        assert [metrics["round"] for metrics in guide.rounds[key]] == [1, 2, 3]
        assert guide.outcomes[key].status == "finished"
        assert guide.outcomes[key].predictions == direct(config).predictions


def test_an_error_of_the_guide_ends_the_search(cluster, tmp_path):
    class Broken(Plain):
        def propose(self) -> PlannedTrial | None:
            raise OSError("no study")

    with pytest.raises(OSError, match="no study"):
        search(Broken({}), ClusterOptions(folder=tmp_path))


def test_after_the_deadline_no_trial_is_proposed(cluster, tmp_path):
    guide = Plain({"a": toy.toy_config(rounds=1)})
    assert not search(guide, ClusterOptions(folder=tmp_path, deadline=0.0))
    assert guide.events == []


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module, "time", clock := Clock())
    return clock


def test_gpu_seconds_count_while_gpus_are_held(clock):
    kept = []
    budget = GpuBudget(10.0, 1.0, kept.append)
    budget.hold("a", 0.5)
    budget.hold("b", 2.0)
    clock.now = 2.0
    assert budget.used == 1.0 + 0.5 * 2 + 2.0 * 2
    assert not budget.spent
    budget.release("b")
    budget.release("b")
    clock.now = 4.0
    # A trial that was started again without a report of its end holds its GPUs once.
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


@pytest.mark.slow
def test_once_the_gpu_budget_is_spent_running_trials_stop_after_a_round_and_none_is_proposed(cluster, tmp_path, clock):
    class Counting(Plain):
        """Advances the clock by one second per round."""

        def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
            super().round(trial, metrics)
            clock.now += 1.0

    kept: list[float] = []
    guide = Counting({key: toy.toy_config(seed=seed, rounds=5000) for seed, key in enumerate("abc")})
    budget = GpuBudget(4.0, 1.0, kept.append)
    assert not search(guide, ClusterOptions(folder=tmp_path, gpus_per_trial=1, max_concurrent=1), budget)
    assert guide.outcomes == {}
    assert guide.events == [("propose", "a")]
    assert kept[-1] == budget.used == 1.0 + len(guide.rounds["a"]) >= 4.0
    # The trial continues from its last round: no round is lost.
    path = tmp_path / "trials" / "a" / "state.safetensors"
    stood = states.load(start(guide.configs["a"], toy.make_prepared()), path)
    assert stood.round == len(guide.rounds["a"])
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["a"]


def test_a_search_whose_gpu_budget_is_spent_starts_nothing(cluster, tmp_path):
    guide = Plain({"a": toy.toy_config(rounds=1)})
    assert not search(guide, ClusterOptions(folder=tmp_path, gpus_per_trial=1), GpuBudget(3.0, 4.0))
    assert guide.events == []


SPACE = """
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 1}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 1}
inversion: {name: fast, steps: 1, batch: 32, width: 8, bn_weight: !log_uniform [0.1, 100]}
distiller: {steps: 2, batch: 32}
rounds: 3
"""


@pytest.mark.slow
def test_a_search_names_the_spent_budget_and_counts_all_its_runs(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(searches, "connect", lambda address, view: contextlib.nullcontext())
    common = {"out": tmp_path / "out", "cache": tmp_path / "cache", "trials": 2, "gpus_per_trial": 0.5}

    def run(hours: float) -> int:
        return command.run("Which?", parse(SPACE), command.SearchFlags(**common, gpu_hours=hours))

    assert run(1e-9) == 3
    assert "the GPU budget is spent; the same command continues" in capsys.readouterr().err
    study = optuna.load_study(study_name="search", storage=open_storage(None, tmp_path / "out"))
    spent = study.user_attrs["gpu_seconds"]
    assert spent > 3600e-9
    begun = len(study.trials)
    assert run(spent / 3600) == 3
    assert len(study.trials) == begun
    assert run(1.0) == 0
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert study.user_attrs["gpu_seconds"] > spent


def test_a_device_pool_limit_below_one_round_is_refused_before_anything_is_written(tmp_path):
    common = {"out": tmp_path / "out", "cache": tmp_path / "cache", "gpus_per_trial": 0.5}
    spec = command.SearchFlags(**common, device_pool_limit="2kB")
    for begin in (searches.run, lambda question, tree, spec: searches.explained(tree, spec)):
        with pytest.raises(InputError, match=r"--device-pool-limit is '2000 bytes'; accepted: at least the 2304 bytes"):
            begin("Which?", parse(SPACE), spec)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def monitored(monkeypatch, tmp_path):
    """A `SearchMonitor` of trials a to d, without Ray and Tune, and a clock at 100 s that the test advances."""
    now = SimpleNamespace(now=100.0)
    monkeypatch.setattr(memory_shortage, "time", SimpleNamespace(monotonic=lambda: now.now))
    monkeypatch.setattr(module, "Packer", lambda: SimpleNamespace(job=planned_job))
    monkeypatch.setattr(module, "check_packing", lambda *given: None)
    per_producer = SimpleNamespace(gpus=0.0)
    options = SimpleNamespace(
        deadline=None, check=lambda configs: None, gpus_per_trial=0.0, per_producer=per_producer, device_pool_limit=None
    )
    context = SimpleNamespace(folder=tmp_path, options=options)
    jobs = SimpleNamespace(put=lambda job: None, remove=lambda key: None)
    guide = Plain({key: toy.toy_config(seed=seed) for seed, key in enumerate("abcd")})
    return module.SearchMonitor(guide, context, jobs, GpuBudget(1e9)), now  # type: ignore[arg-type]


def planned_job(trial: PlannedTrial) -> SimpleNamespace:
    return SimpleNamespace(key=trial.key, config=trial.config)


def test_a_trial_set_aside_for_lack_of_memory_runs_alone_until_it_has_ended(monitored):
    search, now = monitored
    assert [search.propose()["key"] for _ in "abc"] == [*"abc"]
    for key in "ab":
        search.started(key)
    search.starve("a", "memory")
    search.failed("b", "an error")
    now.now += 1000
    # Trial c was passed to Tune and may start at any moment.
    assert search.propose() == "later"
    now.now += 1000
    assert search.propose() == "later"
    search.started("c")
    search.failed("c", "an error")
    assert search.propose() == "later"
    now.now += 1000
    assert search.propose()["key"] == "a"
    assert search.propose() == "later"
    search.started("a")
    assert search.propose() == "later"
    search.retried("a", "its process died")
    assert search.propose() == "later"
    search.failed("a", "an error")
    assert search.propose()["key"] == "d"


def test_a_trial_that_is_only_retried_does_not_block_others(monitored):
    search, _ = monitored
    assert search.propose()["key"] == "a"
    search.started("a")
    search.drop("a")
    assert search.propose()["key"] == "a"
    assert search.propose()["key"] == "b"
