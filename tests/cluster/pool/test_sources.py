"""Producers and trials that share rounds: same numbers as in one process, also after kills, and no process is left."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from chaos.processes import kill

from cluster import processes
from cluster.drivers import PATH, assert_equal_numbers, direct, timeless
from cluster.test_sweep import Observer, diverging, planned
from condkd_ray.cluster.jobs import Packer
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.cluster.pool.sources import Producers, SharedSource
from condkd_ray.cluster.pool.stores import FilledStore, SharedStore
from condkd_ray.cluster.sweep import Monitor, interleaved
from condkd_ray.core.method import InputError, Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import DeepInversion, Fast
from condkd_ray.methods.memory import Latest, Reservoir
from condkd_ray.models import ResNet
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import Pipeline, TrialConfig
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import run_trial
from condkd_ray.trial.synthesis import codec

PRODUCER, LEARNER = "ProducerProcess", "ImplicitFunc"
HALF = {"cpus_per_trial": 0.5, "per_producer": Allowance(cpus=0.5, gpus=0.5)}
ADVERSARIAL = toy.toy_config(guidance=Discriminator(hidden=16), pipeline=Pipeline(staleness=1), rounds=6)
TWO = replace(ADVERSARIAL, pipeline=Pipeline(producers=2, staleness=2))


def gone(name: str) -> bool:
    """Return whether all processes of that name end within 30 seconds."""
    deadline = time.monotonic() + 30
    while processes.of_ray(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_a_sweep_with_producers_gives_the_same_numbers_as_one_process(cluster, tmp_path):
    free = toy.toy_config(inversion=DeepInversion(steps=2, batch=16), memory=Latest())
    configs = {
        "adversarial": ADVERSARIAL,
        "two": TWO,
        "free": replace(free, pipeline=Pipeline(staleness=2)),
        "nan": replace(diverging(rounds=5), pipeline=Pipeline()),
        "plain": free,
    }
    observed = Observer()
    assert observed.sweep(configs, tmp_path, **HALF)
    assert gone(PRODUCER)
    for key in ("adversarial", "two", "free", "plain"):
        assert_equal_numbers(observed.outcomes[key], direct(configs[key]))
    assert_equal_numbers(observed.outcomes["free"], direct(free))
    assert observed.outcomes["nan"].reason == direct(configs["nan"]).reason
    assert observed.outcomes["adversarial"].metrics["time/waiting_seconds"] > 0
    assert "time/waiting_seconds" not in observed.outcomes["plain"].metrics
    assert {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("*/*")} <= {"pool.json", "nan"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [PRODUCER, LEARNER, "SyntheticPool"])
def test_a_killed_process_does_not_change_the_numbers(cluster, tmp_path, victim):
    config, killed = replace(TWO, rounds=8), []

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        if metrics["round"] == 3:
            killed.extend(processes.of_ray(victim))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    observed = Observer(disturb)
    assert observed.sweep({"a": config}, tmp_path, checkpoint_seconds=0, **HALF)
    assert len(killed) == (2 if victim == PRODUCER else 1)
    assert observed.rounds["a"] == list(range(1, 9))
    assert_equal_numbers(observed.outcomes["a"], direct(config))
    assert gone(PRODUCER)


def test_producers_beyond_the_cpus_are_refused(cluster, tmp_path):
    with pytest.raises(InputError, match=r"1 CPUs and 2 producers of 1 CPUs.*accepted: at most .* 2 CPUs"):
        Observer().sweep({"a": TWO}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def group(cluster, monkeypatch) -> Iterator[None]:
    """A placement group as a trial of two producers has it, for a learner in this process."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    made = placement_group([{"CPU": 0.1}] * 3)
    ray.get(made.ready())
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: made)
    yield
    remove_placement_group(made)


class LocalTrial:
    """Runs a trial in this process with producers in other processes."""

    def __init__(self, config: TrialConfig, folder) -> None:
        self.config, self.prepared = config, toy.make_prepared()
        self.pool = make_pool(folder / "chunks", 2**30)

    def rounds_made(self) -> int:
        import ray

        return ray.get(self.pool.stats.remote())["samples"] // self.config.inversion.images_per_round

    def run(self, on_round):
        place = (codec(self.config, self.prepared.teacher), toy.NUM_CLASSES, self.pool, "a")
        with Producers(Packer().pack(self.prepared), self.pool, "a", Allowance(0.1)) as producers:
            return run_trial(self.config, self.prepared, FilledStore(*place), source=producers, on_round=on_round)


@pytest.mark.slow
def test_producers_are_ahead_by_their_staleness_at_most(group, tmp_path):
    import ray

    trial, found = LocalTrial(replace(TWO, rounds=5), tmp_path), []

    def on_round(metrics: Metrics) -> None:
        most = min(metrics["round"] + 2, 5)
        deadline = time.monotonic() + 30
        while trial.rounds_made() < most and time.monotonic() < deadline:
            time.sleep(0.05)
        # Time in which one more round could be made if nothing held the producers back.
        time.sleep(0.3)
        found.append(trial.rounds_made())

    outcome = trial.run(on_round)
    ray.kill(trial.pool)
    assert found == [3, 4, 5, 5, 5]
    assert outcome.metrics["student/test_accuracy"] == direct(trial.config).metrics["student/test_accuracy"]


@pytest.mark.slow
def test_producers_that_die_repeatedly_end_the_attempt(group, tmp_path):
    import ray
    from ray.exceptions import RayActorError

    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.05):
            for pid in processes.of_ray(PRODUCER):
                kill(pid)

    reaper, trial = threading.Thread(target=reap), LocalTrial(replace(TWO, rounds=2), tmp_path)
    reaper.start()
    try:
        with pytest.raises(RayActorError):
            trial.run(lambda metrics: None)
    finally:
        over.set()
        reaper.join()
        ray.kill(trial.pool)


FREE = toy.toy_config(inversion=DeepInversion(steps=2, batch=16), rounds=4)
GUIDED = replace(FREE, inversion=Fast(steps=2, batch=16, latent=16, width=8, adv_weight=0), guidance=Discriminator())


def unshared(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.startswith("pool/")} for row in timeless(history)]


def assert_as_alone(outcomes: dict[str, Outcome], configs: dict[str, TrialConfig]) -> None:
    for key, config in configs.items():
        expected = direct(config)
        assert outcomes[key].status == "finished", outcomes[key].reason
        assert unshared(outcomes[key].history) == unshared(expected.history), key
        assert outcomes[key].predictions == expected.predictions


def rounds_made(outcomes: dict[str, Outcome], keys: set[str]) -> float:
    return sum(outcomes[key].metrics["pool/made"] for key in keys)


@pytest.mark.slow
def test_trials_that_share_rounds_get_their_own_numbers_and_each_round_is_made_once(cluster, tmp_path):
    configs = {
        "plain": FREE,
        "longer": replace(FREE, rounds=6),
        "other student": replace(FREE, student=ResNet(depth=8, width=4)),
        "few condensed": replace(FREE, distiller=replace(FREE.distiller, condensed_share=0.5)),
        "latest": replace(FREE, memory=Latest()),
        "reservoir": replace(FREE, memory=Reservoir(capacity=20), rounds=5),
        "reads logits": replace(FREE, distiller=replace(FREE.distiller, augment=False)),
        "guided": GUIDED,
        "guided longer": replace(GUIDED, rounds=5),
        "other seed": replace(FREE, seed=1),
        "adversarial": toy.toy_config(),
    }
    observed = Observer()
    assert observed.sweep(configs, tmp_path, "inversion", checkpoint_seconds=0)
    assert_as_alone(observed.outcomes, configs)
    one = {"plain", "longer", "other student", "few condensed", "latest", "reservoir", "reads logits"}
    assert rounds_made(observed.outcomes, one) == 6
    assert rounds_made(observed.outcomes, {"guided", "guided longer"}) == 5
    assert rounds_made(observed.outcomes, {"other seed"}) == 4
    assert "pool/made" not in observed.outcomes["adversarial"].metrics
    # Files that no trial needs any more are deleted.
    assert {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("*/*")} == {"pool.json"}


@pytest.fixture
def pids(monkeypatch) -> dict[str, int]:
    """The process of the latest report of each trial, by key."""
    found: dict[str, int] = {}
    reported = Monitor.reported

    def spy(self, key: str, result: dict) -> None:
        found[key] = result["pid"]
        reported(self, key, result)

    monkeypatch.setattr(Monitor, "reported", spy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("saved", [0, 1000], ids=["its state saved each round", "its state never saved"])
def test_a_killed_maker_does_not_change_the_numbers_of_sharing_trials(cluster, tmp_path, pids, saved):
    """The killed trial restarts and continues to make rounds, or the waiting trial takes over, whichever is first."""
    killed, stopped = [], []

    def disturb(trial: PlannedTrial, metrics: dict) -> None:
        # The first trial is stopped until the second has reported, so that rounds are left to be made.
        if len(pids) == 1 and not stopped:
            stopped.append(pids[trial.key])
            os.kill(stopped[0], signal.SIGSTOP)
        elif len(pids) == 2 and stopped:
            os.kill(stopped.pop(), signal.SIGCONT)
        if metrics["round"] >= 3 and metrics["pool/made"] and len(pids) == 2 and not killed:
            killed.append(trial.key)
            os.kill(pids[trial.key], signal.SIGKILL)

    configs = {"a": replace(FREE, rounds=12), "b": replace(FREE, rounds=12, memory=Latest())}
    observed = Observer(disturb)
    assert observed.sweep(configs, tmp_path, "inversion", checkpoint_seconds=saved)
    assert killed
    assert_as_alone(observed.outcomes, configs)


def share(config: TrialConfig, folder: Path, pool: Any, reader: str) -> Outcome:
    """Run a trial that shares the key "k" of the pool, in this process."""
    prepared = toy.make_prepared()
    store = SharedStore(codec(config, prepared.teacher), toy.NUM_CLASSES, pool, "k", reader=reader)
    with SharedSource(pool, "k", reader, folder / "k" / "production.safetensors", 0) as source:
        return run_trial(config, prepared, store, source=source, produces=False)


def test_a_trial_without_logits_makes_rounds_for_a_trial_that_needs_them(cluster, tmp_path):
    import ray

    pool = make_pool(tmp_path, 2**30)
    reads = replace(FREE, distiller=replace(FREE.distiller, augment=False))
    first, second = (share(config, tmp_path, pool, reader) for reader, config in (("makes", FREE), ("reads", reads)))
    assert (first.metrics["pool/made"], second.metrics["pool/made"]) == (4, 0)
    assert_as_alone({"makes": first, "reads": second}, {"makes": FREE, "reads": reads})
    assert (first.held, second.held) == (direct(FREE).held, direct(reads).held)
    row = 64 + 8
    assert first.metrics["memory/bytes"] == 64 * row
    assert second.metrics["memory/bytes"] == ray.get(pool.stats.remote())["bytes"] == 64 * (row + 8)
    ray.kill(pool)


@pytest.mark.slow
def test_a_waiting_trial_replaces_a_maker_that_does_not_return(cluster, tmp_path):
    import ray

    pool = make_pool(tmp_path, 2**30)
    options = {"max_retries": 0, "runtime_env": {"env_vars": {"PYTHONPATH": PATH}}}
    maker = ray.remote(**options)(share).remote(replace(FREE, rounds=10_000), tmp_path, pool, "maker")
    while (found := ray.get(pool.describe.remote())) == [] or found[0]["rounds"] < 3:
        assert not ray.wait([maker], timeout=0.05)[0], ray.get(maker)
    (pid,) = processes.of_ray("share")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(maker)
    done = ray.get(pool.describe.remote())[0]["rounds"]
    config = replace(FREE, rounds=done + 4)
    outcome = share(config, tmp_path, pool, "waiter")
    assert_as_alone({"waiter": outcome}, {"waiter": config})
    assert [row["pool/made"] for row in outcome.history] == [0.0] * done + [1.0] * 4
    ray.kill(pool)


@pytest.mark.slow
def test_a_killed_pool_does_not_change_the_numbers_of_sharing_trials(cluster, tmp_path):
    killed = []

    def disturb(trial: PlannedTrial, metrics: dict) -> None:
        if metrics["round"] == 3 and not killed:
            (pid,) = processes.of_ray("SyntheticPool")
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    configs = {"a": replace(FREE, rounds=8), "b": replace(FREE, rounds=8, memory=Latest())}
    observed = Observer(disturb)
    assert observed.sweep(configs, tmp_path, "inversion", checkpoint_seconds=0)
    assert_as_alone(observed.outcomes, configs)


@pytest.mark.slow
def test_trials_of_a_sweep_pool_use_each_others_images(cluster, tmp_path):
    configs = {f"seed {seed}": toy.toy_config(seed=seed, rounds=4) for seed in range(4)}
    observed = Observer()
    assert observed.sweep(configs, tmp_path, "sweep")
    assert all(outcome.status == "finished" for outcome in observed.outcomes.values())
    taken = {key: outcome.metrics["pool/taken"] for key, outcome in observed.outcomes.items()}
    own = 4 * 16
    # The last trial starts after two others have made their images.
    assert taken["seed 3"] >= 2 * own
    for key, outcome in observed.outcomes.items():
        row = 64 + 8
        assert outcome.metrics["memory/bytes"] == (own + taken[key]) * row


def test_one_trial_of_each_sharing_group_comes_first():
    configs = {"a0": FREE, "a1": replace(FREE, rounds=9), "b0": replace(FREE, seed=1), "c": toy.toy_config()}
    trials = [planned(key, config, "inversion") for key, config in configs.items()]
    assert [trial.key for trial in interleaved(trials)] == ["a0", "b0", "c", "a1"]
    alone = [planned(key, config) for key, config in configs.items()]
    assert [trial.key for trial in interleaved(alone)] == list(configs)
