"""Where a trial's files lie; whole trials under Tune are in `test_sweep.py`."""

from pathlib import Path

from condkd_ray.cluster.worker.paths import outcome_path, trial_folder


def test_all_of_a_trial_lies_in_one_folder(tmp_path: Path):
    assert outcome_path(tmp_path, "a").parent == trial_folder(tmp_path, "a") != trial_folder(tmp_path, "b")
