"""What is told of samples and objects that went to disk, also while nodes are being lost."""

import os
import subprocess
import sys

import pytest
from places import TESTS

from condkd_ray.cluster.driver.options import spilled_by_ray

LOSING = TESTS / "cluster" / "losing_nodes.py"


def test_ray_is_asked_what_it_has_spilled(cluster):
    assert spilled_by_ray() == 0


@pytest.mark.fault
def test_a_sweep_that_ends_as_nodes_are_lost_ends_all_the_same(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(LOSING), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "told"
