import pytest
import toy
from benchmark.worlds import Told, idle, scratch

from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import sweep


@pytest.mark.ray
def test_trials_in_which_nothing_is_left_to_do_are_heard_of_and_cleared_up(cluster, tmp_path):
    heard = []
    trials = idle(3, tmp_path, toy.make_prepared())
    told = Told(lambda trial, metrics: None, lambda trial, outcome: heard.append((trial.key, outcome.history)))
    assert sweep(trials, ClusterOptions(folder=tmp_path), told)
    assert sorted(heard) == [(f"seed{seed}", [{"round": 1, "kd/loss": 0.0}]) for seed in range(3)]
    assert not list((tmp_path / "trials").iterdir())


def test_the_scratch_folder_is_gone_afterwards():
    with scratch() as folder:
        (folder / "file").touch()
    assert not folder.exists()
