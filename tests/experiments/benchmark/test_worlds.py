import pytest
import toy
from benchmark.worlds import idle, scratch

from condkd_ray.cluster.driver.options import Terms
from condkd_ray.cluster.driver.sweep import sweep


@pytest.mark.ray
def test_trials_in_which_nothing_is_left_to_do_are_heard_of_and_cleared_up(cluster, tmp_path):
    heard = []
    trials = idle(3, tmp_path, toy.make_prepared())
    assert sweep(
        trials, Terms(folder=tmp_path), on_outcome=lambda trial, outcome: heard.append((trial.key, outcome.history))
    )
    assert sorted(heard) == [(f"seed{seed}", [{"round": 1, "kd/loss": 0.0}]) for seed in range(3)]
    assert not list((tmp_path / "trials").iterdir())


def test_the_scratch_folder_is_gone_afterwards():
    with scratch() as folder:
        (folder / "file").touch()
    assert not folder.exists()
