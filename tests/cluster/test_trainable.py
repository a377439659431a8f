"""What a reused process owes the next trial; whole trials under Tune are in `test_tuning.py`."""

import sys
import threading
from pathlib import Path

import psutil
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


@pytest.mark.skipif(sys.platform != "linux", reason="only the GNU allocator is asked")
def test_what_the_thread_of_an_earlier_trial_has_freed_is_given_back():
    blocks: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: blocks.extend(torch.ones(2000) for _ in range(40_000)))
    thread.start()
    thread.join()
    # The last one stays, so that the allocator cannot just cut off the end of its memory.
    del blocks[:-1]
    held = psutil.Process().memory_info().rss
    _clean_process(1)
    assert psutil.Process().memory_info().rss < held - 100_000_000


def test_all_of_a_trial_lies_in_one_folder(tmp_path: Path):
    assert outcome_path(tmp_path, "a").parent == trial_folder(tmp_path, "a") != trial_folder(tmp_path, "b")
