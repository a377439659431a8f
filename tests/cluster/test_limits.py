"""What a sweep is bounded by: time, trials at once, custom resources."""

import time

import pytest
import toy

from cluster.test_sweep import Heard
from condkd_ray.cluster.files import trial_folder

HERE = "node:127.0.0.1"
"""A resource of which each node of a cluster on loopback has 1."""


def test_at_its_deadline_a_sweep_ends_and_what_ran_has_a_checkpoint(cluster, tmp_path):
    configs = {key: toy.toy_config(seed=seed, rounds=100_000) for seed, key in enumerate("abcd")}
    heard = Heard()
    for seconds in (6, 12, 24, 48, 96):
        assert not heard.sweep(configs, tmp_path, deadline=time.time() + seconds, checkpoint_seconds=3600)
        # On a busy machine processes may not have started by then.
        if len(heard.rounds) == 2:
            break
    # Its trials would have gone on for half an hour.
    assert heard.outcomes == {}
    assert set(heard.rounds) == {"a", "b"}
    # No checkpoint was due but that at the end.
    stored = {key for key in configs if (trial_folder(tmp_path, key) / "state.safetensors").is_file()}
    assert stored == {"a", "b"}


@pytest.mark.parametrize("limit", [{"max_concurrent": 1}, {"resources": {HERE: 0.6}}])
def test_fewer_trials_at_once(cluster, tmp_path, limit):
    told: list[str] = []
    configs = {key: toy.toy_config(seed=seed, rounds=2) for seed, key in enumerate("ab")}
    assert Heard(lambda trial, metrics: told.append(trial.key)).sweep(configs, tmp_path, **limit)
    assert told == ["a", "a", "b", "b"]
