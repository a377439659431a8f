"""Resources of trials on a cluster, and the bytes that Ray has spilled to disk."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray._raylet as ray_core
from places import TESTS

from condkd_ray.cluster.options import UNITS, ClusterOptions, check_resources, slots
from condkd_ray.cluster.pool.limits import spilled_by_ray
from condkd_ray.core.method import InputError
from condkd_ray.trial.allowance import Allowance

HERE = "node:127.0.0.1"
"""A resource of which each node of a cluster on loopback has 1."""


@pytest.mark.parametrize(
    ("cpus", "gpus"),
    [
        *((64, 0), (1, 3), (0, 0), (1, 1.5), (1, -1), (1, math.nan), (1, math.inf), (math.nan, 0), (math.inf, 0)),
        *((0.00005, 0), (1, 0.00005)),
    ],
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


@pytest.fixture
def nodes(monkeypatch):
    """Return a function that makes the resources of a cluster's nodes those given."""
    import ray

    def have(*resources: dict[str, float]) -> None:
        found = [{"Alive": True, "Resources": {"memory": 1e10, **each}} for each in resources]
        monkeypatch.setattr(ray, "nodes", lambda: [*found, {"Alive": False, "Resources": {"CPU": 99.0}}])

    return have


def trial(producers: int = 0) -> SimpleNamespace:
    return SimpleNamespace(pipeline=SimpleNamespace(producers=producers) if producers else None)


def test_amounts_are_counted_in_the_units_of_ray(cluster):
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    assert ray_core.RESOURCE_UNIT_SCALING == UNITS
    most = slots(0.0001, 0, {HERE: 0.0029})
    assert most == UNITS // 28
    group = placement_group([{HERE: 0.0029}] * most)
    try:
        ray.get(group.ready(), timeout=30)
    finally:
        remove_placement_group(group)


@pytest.mark.parametrize(
    ("machine", "each", "count"),
    [
        *(({"CPU": 64, "GPU": 4}, (0.1, 0.2), 20), ({"CPU": 64, "GPU": 2}, (0.1, 0.1), 20)),
        *(({"CPU": 64, "GPU": 16}, (0.1, 0.8), 16), ({"CPU": 0.3}, (0.1, 0), 3), ({"CPU": 2.1}, (0.7, 0), 3)),
        ({"CPU": 1}, (0.0029, 0), 10_000 // 28),  # 28 units: Ray drops the rest of the product, 28.999999999999996
        # A part of a GPU is on one GPU: 0.6 fits once on each, 0.4 twice.
        *(({"CPU": 64, "GPU": 4}, (1, 0.6), 4), ({"CPU": 64, "GPU": 4}, (1, 0.4), 8)),
        *(({"CPU": 64, "GPU": 4}, (1, 2), 2), ({"CPU": 64, "GPU": 3}, (1, 2), 1), ({"CPU": 3, "GPU": 4}, (1, 1), 3)),
    ],
)
def test_slots_are_counted_without_rounding_errors(nodes, machine, each, count):
    nodes(machine)
    assert slots(*each) == count
    nodes(machine, {}, machine)
    assert slots(*each) == 2 * count


def options(tmp_path, cpus: float, gpus: float, producer: tuple[float, float] = (1, 0), **more) -> ClusterOptions:
    return ClusterOptions(
        folder=tmp_path, cpus_per_trial=cpus, gpus_per_trial=gpus, per_producer=Allowance(*producer), **more
    )


def test_a_trial_and_producers_whose_parts_add_up_to_the_machine_are_accepted(nodes, tmp_path):
    nodes({"CPU": 1, "GPU": 1})
    fits = options(tmp_path, 0.7, 0.4, producer=(0.1, 0.2))
    fits.check([trial(3)])
    assert fits.at_once([trial(3)]) == 1
    with pytest.raises(InputError, match=r"'0.7 CPUs, 0.4 GPUs and 4 producers of 0.1 CPUs, 0.2 GPUs'; accepted: at m"):
        fits.check([trial(4)])
    nodes({"CPU": 8, "GPU": 2})
    assert options(tmp_path, 0.5, 0.4, producer=(0.5, 0.2)).at_once([trial(3)]) == 2


def test_parts_of_gpus_that_would_need_two_gpus_are_refused(nodes, tmp_path):
    nodes({"CPU": 8, "GPU": 2})
    with pytest.raises(InputError, match="resources per trial"):
        options(tmp_path, 1, 0.6, producer=(1, 0.6)).check([trial(2)])
    options(tmp_path, 1, 0.6, producer=(1, 0.6)).check([trial(1)])


def test_custom_resources_must_be_on_the_node_that_has_the_cpus(nodes, tmp_path):
    nodes({"CPU": 1, "big": 1}, {"CPU": 8})
    one = options(tmp_path, 1, 0, resources={"big": 1})
    one.check([trial(3)])
    assert one.at_once([trial(3)]) == 1
    with pytest.raises(InputError, match="'2 CPUs, 1 big'; accepted: at most what one machine has, of 8 CPUs, 0"):
        options(tmp_path, 2, 0, resources={"big": 1}).check([trial()])
    nodes({"CPU": 2, "big": 1}, {"CPU": 2})
    # The trial's own process takes the node with the resource, and leaves it to no producer before.
    assert options(tmp_path, 2, 0, producer=(2, 0), resources={"big": 1}).at_once([trial(1)]) == 1
    with pytest.raises(
        InputError, match=r"'2 CPUs, 1 big and 2 producers of 2 CPUs'; .* 2 CPUs, 0 GPUs, 1 big; 2 CPUs"
    ):
        options(tmp_path, 2, 0, producer=(2, 0), resources={"big": 1}).check([trial(2)])


def test_producers_with_gpus_are_placed_before_processes_without(nodes, tmp_path):
    nodes({"CPU": 2, "GPU": 1}, {"CPU": 4})
    options(tmp_path, 1, 0, producer=(1, 0.5)).check([trial(2)])


def test_the_trial_goes_to_the_node_that_leaves_its_producers_room(nodes, tmp_path):
    nodes({"CPU": 3, "GPU": 1}, {"CPU": 2, "GPU": 1})
    one = options(tmp_path, 3, 0, producer=(2, 1))
    one.check([trial(1)])
    assert one.at_once([trial(1)]) == 1


def test_trials_with_producers_are_counted_quickly_on_many_nodes(nodes, tmp_path):
    nodes(*[{"CPU": 64, "GPU": 4}] * 200)
    assert options(tmp_path, 1, 0.1, producer=(1, 0.1)).at_once([trial(1)]) == 200 * 20


def test_amounts_of_nodes_that_a_float_misses_by_a_little_are_whole_units(nodes):
    nodes({"CPU": 1.13, "big": 1.1299})  # 1.1299 * 10_000 is 11298.999999999998
    assert slots(1.13, 0, {"big": 1.1299}) == 1


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
