from types import SimpleNamespace

import pytest
import toy
from benchmark import figures
from benchmark.figures import idle, scratch

from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import sweep


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"HELD": 640, "ROUND": 20, "BATCH": 16, "READ_BYTES": 1e6}.items():
        monkeypatch.setattr(figures, name, value)


@pytest.mark.ray
def test_draws_before_and_after_compaction_are_measured(cluster):
    after, before = figures.draw()
    assert (after.bound, before.bound) == (1.2, 2.0)
    assert "after compaction (2 chunks)" in after.what
    assert "before compaction (32 chunks)" in before.what
    assert len(after.values) == len(before.values) == 5
    assert min(*after.values, *before.values) > 0


@pytest.mark.ray
def test_memory_of_readers_is_measured(cluster):
    (measured,) = figures.reader()
    assert len(measured.values) == 5
    assert max(measured.values) < 100


@pytest.mark.ray
def test_trials_in_which_nothing_is_left_to_do_are_heard_of_and_cleared_up(cluster, tmp_path):
    heard = []
    trials = idle(3, tmp_path, toy.make_prepared())
    told = SimpleNamespace(
        round=lambda trial, metrics: None, ended=lambda trial, outcome: heard.append((trial.key, outcome.history))
    )
    assert sweep(trials, ClusterOptions(folder=tmp_path), told)
    assert sorted(heard) == [(f"seed{seed}", [{"round": 1, "kd/loss": 0.0}]) for seed in range(3)]
    assert not list((tmp_path / "trials").iterdir())


def test_the_scratch_folder_is_gone_afterwards():
    with scratch() as folder:
        (folder / "file").touch()
    assert not folder.exists()
