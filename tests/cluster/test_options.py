"""Resources of trials on a cluster, and the bytes that Ray has spilled to disk."""

import math
import os
import subprocess
import sys

import pytest
from places import TESTS

from condkd_ray.cluster.options import check_resources, slots
from condkd_ray.cluster.pool import spilled_by_ray
from condkd_ray.core.method import InputError

HERE = "node:127.0.0.1"
"""A resource of which each node of a cluster on loopback has 1."""


@pytest.mark.parametrize(
    ("cpus", "gpus"),
    [(64, 0), (1, 3), (0, 0), (1, 1.5), (1, -1), (1, math.nan), (1, math.inf), (math.nan, 0), (math.inf, 0)],
)
def test_resources_that_no_node_has_are_refused(cluster, cpus, gpus):
    with pytest.raises(InputError, match="per trial is"):
        check_resources(cpus, gpus)


@pytest.mark.parametrize(("cpus", "gpus", "count"), [(1, 0, 2), (0.5, 0, 4), (2, 0, 1), (0.5, 1, 2), (0.5, 0.5, 4)])
def test_slots_are_the_trials_that_fit_on_the_cluster(cluster, cpus, gpus, count):
    check_resources(cpus, gpus)
    assert slots(cpus, gpus) == count


def test_a_custom_resource_counts_for_slots(cluster):
    assert slots(0.5, 0, {HERE: 0.5}) == 2
    assert slots(1, 0, {HERE: 1}) == 1


@pytest.mark.parametrize("more", [{"big_memory": 1.0}, {HERE: 2.0}])
def test_a_custom_resource_that_no_node_has_is_refused_with_the_resources_of_nodes(cluster, more):
    (name,) = more
    with pytest.raises(InputError, match=f"{name}'; accepted: at most what one machine has, of 2 CPUs, 2 GPUs"):
        check_resources(1, 0, more)


LOSING = TESTS / "cluster" / "losing_nodes.py"


def test_the_bytes_spilled_by_ray_are_read(cluster):
    import ray

    before = spilled_by_ray()
    assert before is not None
    store = next(node["Resources"]["object_store_memory"] for node in ray.nodes())
    if store > 2**29:
        # Other tests do not fill a store of this size, so Ray has spilled nothing.
        assert before == 0


@pytest.mark.fault
def test_logging_spilled_bytes_works_although_nodes_are_lost(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(LOSING), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "done"
