"""A trial that is run twice with one seed on one device gives the same numbers, bit for bit."""

import pytest
import torch
from toy import toy_config

from condkd_ray.core.environment import set_up_process
from condkd_ray.trial.hardware import hardware_of, settled
from condkd_ray.trial.run import local_store, run_trial
from trial.devices import DEVICES, prepared_on


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", None])
def test_a_repeated_trial_gives_the_same_numbers(device, precision):
    set_up_process(torch.get_num_threads())
    config, prepared, found = settled(toy_config(precision=precision), hardware_of(device)), prepared_on(device), []
    for _ in range(2):
        outcome = run_trial(config, prepared, local_store(config, prepared, None))
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in outcome.history]
        found.append((outcome.status, rows, outcome.predictions))
        assert len(rows) == config.rounds
    assert found[0] == found[1]
