"""What a reused process owes the next trial; whole trials under Tune are in `test_tuning.py`."""

import sys
from pathlib import Path

import pytest
import torch

from condkd_ray.cluster.trainable import _clean_process, outcome_path, trial_folder
from condkd_ray.run import peak_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_peak_memory_is_that_of_one_trial():
    block = torch.ones(100_000_000)
    before = peak_bytes(torch.device("cpu"))
    del block
    _clean_process(1)
    assert peak_bytes(torch.device("cpu")) <= before - 300_000_000
    assert torch.get_num_threads() == 1


def test_all_of_a_trial_lies_in_one_folder(tmp_path: Path):
    assert outcome_path(tmp_path, "a").parent == trial_folder(tmp_path, "a") != trial_folder(tmp_path, "b")
