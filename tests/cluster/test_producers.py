"""Producers as processes: the numbers are those of one process, whoever is killed, and nobody runs away."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import toy

from cluster import processes
from cluster.drivers import assert_equal_numbers, direct
from cluster.test_sweep import Heard, diverging
from condkd_ray.cluster.jobs import Packer
from condkd_ray.cluster.pool import make_pool
from condkd_ray.cluster.sources import Crew
from condkd_ray.cluster.stores import FilledStore
from condkd_ray.core.method import InputError, Metrics
from condkd_ray.methods.guidance import Discriminator
from condkd_ray.methods.inversion import DeepInversion
from condkd_ray.methods.memory import Latest
from condkd_ray.trial.config import Allowance, Pipeline, TrialConfig
from condkd_ray.trial.plan import PlannedTrial
from condkd_ray.trial.run import run_trial
from condkd_ray.trial.synthesis import codec

PRODUCER, LEARNER = "ProducerProcess", "ImplicitFunc"
HALF = {"cpus_per_trial": 0.5, "per_producer": Allowance(cpus=0.5, gpus=0.5)}
ASKS = toy.toy_config(guidance=Discriminator(hidden=16), pipeline=Pipeline(staleness=1), rounds=6)
TWO = replace(ASKS, pipeline=Pipeline(producers=2, staleness=2))


def gone(name: str) -> bool:
    """Whether all processes of that name end within seconds."""
    deadline = time.monotonic() + 30
    while processes.of_ray(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_sweep_gives_the_numbers_of_one_process(cluster, tmp_path):
    free = toy.toy_config(inversion=DeepInversion(steps=2, batch=16), memory=Latest())
    configs = {
        "asks": ASKS,
        "two": TWO,
        "free": replace(free, pipeline=Pipeline(staleness=2)),
        "nan": replace(diverging(rounds=5), pipeline=Pipeline()),
        "plain": free,
    }
    heard = Heard()
    assert heard.sweep(configs, tmp_path, **HALF)
    assert gone(PRODUCER)
    for key in ("asks", "two", "free", "plain"):
        assert_equal_numbers(heard.outcomes[key], direct(configs[key]))
    assert_equal_numbers(heard.outcomes["free"], direct(free))
    assert heard.outcomes["nan"].reason == direct(configs["nan"]).reason
    assert heard.outcomes["asks"].metrics["time/waiting_seconds"] > 0
    assert "time/waiting_seconds" not in heard.outcomes["plain"].metrics
    assert {path.relative_to(tmp_path).parts[1] for path in tmp_path.glob("*/*")} <= {"pool.json", "nan"}


@pytest.mark.parametrize(
    "victim",
    [PRODUCER, pytest.param(LEARNER, marks=pytest.mark.slow), pytest.param("SyntheticPool", marks=pytest.mark.slow)],
)
def test_whoever_is_killed_the_numbers_stay_as_they_were(cluster, tmp_path, victim):
    config, killed = replace(TWO, rounds=8), []

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        if metrics["round"] == 3:
            killed.extend(processes.of_ray(victim))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    heard = Heard(disturb)
    assert heard.sweep({"a": config}, tmp_path, checkpoint_seconds=0, **HALF)
    assert len(killed) == (2 if victim == PRODUCER else 1)
    assert heard.rounds["a"] == list(range(1, 9))
    assert_equal_numbers(heard.outcomes["a"], direct(config))
    assert gone(PRODUCER)


def test_what_the_machines_cannot_hold_is_refused(cluster, tmp_path):
    with pytest.raises(InputError, match=r"1 CPUs and 2 producers of 1 CPUs.*accepted: at most .* 2 CPUs"):
        Heard().sweep({"a": TWO}, tmp_path)
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


class Here:
    """Runs a trial in this process with its producers beside it."""

    def __init__(self, config: TrialConfig, folder) -> None:
        self.config, self.prepared = config, toy.make_prepared()
        self.pool = make_pool(folder / "chunks", 2**30)

    def rounds_made(self) -> int:
        import ray

        return ray.get(self.pool.stats.remote())["samples"] // self.config.inversion.images_per_round

    def run(self, on_round):
        place = (codec(self.config, self.prepared.teacher), toy.NUM_CLASSES, self.pool, "a")
        with Crew(Packer().pack(self.prepared), self.pool, "a", Allowance(0.1)) as crew:
            return run_trial(self.config, self.prepared, FilledStore(*place), source=crew, on_round=on_round)


def test_producers_are_ahead_by_their_staleness_and_no_more(group, tmp_path):
    import ray

    here, found = Here(replace(TWO, rounds=5), tmp_path), []

    def on_round(metrics: Metrics) -> None:
        most = min(metrics["round"] + 2, 5)
        deadline = time.monotonic() + 30
        while here.rounds_made() < most and time.monotonic() < deadline:
            time.sleep(0.05)
        # Time enough for one more to come, should nobody hold it back.
        time.sleep(0.3)
        found.append(here.rounds_made())

    outcome = here.run(on_round)
    ray.kill(here.pool)
    assert found == [3, 4, 5, 5, 5]
    assert outcome.metrics["student/test_accuracy"] == direct(here.config).metrics["student/test_accuracy"]


@pytest.mark.slow
def test_producers_that_die_again_and_again_end_the_attempt(group, tmp_path):
    import ray
    from ray.exceptions import RayActorError

    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.05):
            for pid in processes.of_ray(PRODUCER):
                os.kill(pid, signal.SIGKILL)

    reaper, here = threading.Thread(target=reap), Here(replace(TWO, rounds=2), tmp_path)
    reaper.start()
    try:
        with pytest.raises(RayActorError):
            here.run(lambda metrics: None)
    finally:
        over.set()
        reaper.join()
        ray.kill(here.pool)
