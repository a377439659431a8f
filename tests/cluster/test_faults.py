"""Sweeps whose processes get real signals; afterwards all numbers equal those of an undisturbed run."""

import os
import resource
import signal
import threading

import pytest
import toy
from chaos.processes import kill

from cluster import processes
from cluster.drivers import assert_equal_numbers, direct
from cluster.test_sweep import Observer
from condkd_ray.cluster.files import ATTEMPTS, attempts_path, trial_folder
from condkd_ray.cluster.sweep import MAX_STALLED
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.core.storage import StorageFullError
from condkd_ray.trial.plan import PlannedTrial

TRIAL = "ImplicitFunc"


@pytest.mark.slow
def test_a_trial_killed_more_often_than_its_attempts_finishes(cluster, tmp_path):
    config, left = toy.toy_config(rounds=8), list(range(1, ATTEMPTS + 2))

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        if metrics["round"] in left:
            left.remove(metrics["round"])
            (pid,) = processes.of_ray(TRIAL)
            os.kill(pid, signal.SIGKILL)

    observed = Observer(disturb)
    assert observed.sweep({"a": config}, tmp_path, checkpoint_seconds=0)
    assert not left
    assert_equal_numbers(observed.outcomes["a"], direct(config))
    assert observed.rounds["a"] == list(range(1, 9))


@pytest.mark.slow
def test_a_trial_that_raises_is_tried_three_times_and_again_by_the_next_sweep(cluster, tmp_path):
    config, observed = toy.toy_config(rounds=3), Observer()
    # A folder with the name of the checkpoint file, so that the checkpoint cannot be saved.
    obstacle = trial_folder(tmp_path, "a") / "state.safetensors"
    obstacle.mkdir(parents=True)
    assert observed.sweep({"a": config, "b": config}, tmp_path, checkpoint_seconds=0)
    assert observed.outcomes["a"].status == "failed"
    assert observed.outcomes["a"].reason == f"IsADirectoryError: [Errno 21] Is a directory: '{obstacle}'"
    assert_equal_numbers(observed.outcomes["b"], direct(config))
    assert attempts_path(obstacle.parent).read_text().count("Traceback") >= ATTEMPTS
    again = Observer()
    assert again.sweep({"a": config}, tmp_path, attempts=1, checkpoint_seconds=0)
    assert attempts_path(obstacle.parent).read_text().count('"reason"') == 1
    obstacle.rmdir()
    last = Observer()
    assert last.sweep({"a": config}, tmp_path)
    assert_equal_numbers(last.outcomes["a"], direct(config))
    assert list(tmp_path.glob("*/*/")) == []


class Reaper(threading.Thread):
    """A thread that kills every new process of a trial."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: set[int] = set()
        # Processes of an earlier sweep may still be ending.
        self._others = set(processes.of_ray(TRIAL))
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            for pid in set(processes.of_ray(TRIAL)) - self.killed - self._others:
                kill(pid)
                self.killed.add(pid)

    def __enter__(self) -> "Reaper":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
def test_a_trial_that_always_dies_fails_and_is_tried_again_by_the_next_sweep(cluster, tmp_path):
    config, observed, last = toy.toy_config(rounds=3), Observer(), Observer()
    with Reaper() as reaper:
        assert observed.sweep({"a": config}, tmp_path)
    assert len(reaper.killed) == MAX_STALLED
    assert observed.outcomes["a"].status == "failed"
    assert observed.outcomes["a"].reason.startswith(
        f"{MAX_STALLED} attempts in a row without one more round; the last: its"
    )
    assert last.sweep({"a": config}, tmp_path)
    assert_equal_numbers(last.outcomes["a"], direct(config))


@pytest.mark.slow
def test_a_stopped_trial_does_not_hold_up_others_and_finishes_later(cluster, tmp_path):
    configs = {key: toy.toy_config(rounds=12, seed=seed) for seed, key in enumerate("abcd")}
    stopped = []

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        if not stopped and len(observed.rounds) == 2:
            stopped.append(processes.of_ray(TRIAL)[0])
            os.kill(stopped[0], signal.SIGSTOP)

    class Patient(Observer):
        def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
            super().ended(trial, outcome)
            if len(self.outcomes) == 3:
                os.kill(stopped[0], signal.SIGCONT)

    observed = Patient(disturb)
    assert observed.sweep(configs, tmp_path)
    assert stopped
    for key, config in configs.items():
        assert_equal_numbers(observed.outcomes[key], direct(config))


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "file"), [(8000, "state.safetensors"), (512, ".arrow")])
def test_a_limit_on_file_size_ends_the_sweep_with_the_path_and_the_next_sweep_continues(cluster, tmp_path, limit, file):
    """A chunk has 2 kB, a checkpoint 85 kB. Without checkpoints, the smaller limit is reached by the next chunk."""
    configs = {key: toy.toy_config(rounds=12, seed=seed) for seed, key in enumerate("ab")}
    limited = []

    def disturb(trial: PlannedTrial, metrics: Metrics) -> None:
        if metrics["round"] == 2 and not limited:
            limited.extend(processes.of_ray(TRIAL))
            for pid in limited:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    observed = Observer(disturb)
    with pytest.raises(StorageFullError, match=rf"{tmp_path}.*{file}.*: File too large"):
        observed.sweep(configs, tmp_path, checkpoint_seconds=0 if limit > 2000 else 1000)
    assert limited
    assert list(tmp_path.rglob("*.partial")) == []
    last = Observer()
    assert last.sweep({key: configs[key] for key in set(configs) - set(observed.outcomes)}, tmp_path)
    for key, outcome in (observed.outcomes | last.outcomes).items():
        assert_equal_numbers(outcome, direct(configs[key]))
    assert last.outcomes
