"""Faults of Ray's `OptunaSearch` with a stored study, because of which this package has its own searcher.

If these tests fail, the own searcher may no longer be needed.
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from places import TESTS

from condkd_ray.study.storage import open_storage

DRIVER = TESTS / "cluster" / "stock_driver.py"


def space(trial: optuna.Trial) -> None:
    trial.suggest_float("x", 0.0, 1.0)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_nan_trial_stays_running_and_a_stopped_trial_counts_as_complete(cluster, tmp_path):
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def score(config):
        for step in range(1, 5):
            tune.report({"score": math.nan if config["x"] > 0.9 else config["x"] * step})

    storage = open_storage(None, tmp_path)
    searcher = OptunaSearch(
        space,
        storage=storage,
        study_name="stock",
        metric="score",
        mode="max",
        seed=0,
        points_to_evaluate=[{"x": 0.95}, {"x": 0.8}, {"x": 0.1}],
    )
    scheduler = tune.schedulers.ASHAScheduler(metric="score", mode="max", max_t=4, grace_period=1, reduction_factor=2)
    tune.Tuner(
        score,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=3, max_concurrent_trials=1, reuse_actors=True
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    ).fit()
    broken, good, poor = optuna.load_study(study_name="stock", storage=storage).trials
    assert broken.state == TrialState.RUNNING
    assert good.state == poor.state == TrialState.COMPLETE
    assert max(good.intermediate_values) > max(poor.intermediate_values, default=0)


@pytest.mark.fault
def test_a_search_whose_driver_was_killed_cannot_be_restored(tmp_path):
    command = [sys.executable, str(DRIVER), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as driver:
        try:
            _stop_out_of_step(driver, tmp_path)
        finally:
            driver.kill()
    again = subprocess.run([*command, "restore"], env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode != 0
    assert "UpdateFinishedTrialError" in again.stderr


def _stop_out_of_step(driver: subprocess.Popen[bytes], folder: Path) -> None:
    """Stop the driver when trials have ended since Tune's last snapshot, which a restored driver does not have."""
    snapshot, known, until = 0, 0, time.monotonic() + 600
    while True:
        assert driver.poll() is None
        assert time.monotonic() < until
        newest, complete = _snapshot(folder), _complete(folder)
        if newest != snapshot:
            snapshot, known = newest, complete
        if snapshot and complete >= max(30, known + 3):
            driver.send_signal(signal.SIGSTOP)
            if _snapshot(folder) == snapshot:
                return
            driver.send_signal(signal.SIGCONT)
        time.sleep(0.2)


def _snapshot(folder: Path) -> int:
    """Return the time of Tune's last snapshot, or 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in folder.glob("tune/*/experiment_state*")), default=0)


def _complete(folder: Path) -> int:
    """Return the number of complete trials of the study."""
    names = optuna.get_all_study_names(open_storage(None, folder))
    if not names:
        return 0
    study = optuna.load_study(study_name=names[0], storage=open_storage(None, folder))
    return len(study.get_trials(states=(TrialState.COMPLETE,)))
