"""Determines the hardware of trials by tasks on the cluster's nodes, because the driver's node may have no GPU."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from condkd_ray.cluster.lost import in_words, is_lost
from condkd_ray.core.environment import check_part, default_device
from condkd_ray.core.method import ClusterError
from condkd_ray.trial.hardware import CPU, Hardware, hardware_of

PATIENCE_SECONDS = 60.0
"""Seconds to wait for further nodes once one has answered. A node whose GPUs are all taken answers when one is free."""


def trial_hardware(gpus_per_trial: float) -> Hardware:
    """Return the hardware on which trials with `gpus_per_trial` GPUs compute.

    It is the CPU if `gpus_per_trial` is 0, or if PyTorch cannot use the GPUs that Ray counts.

    Blocks until a node has answered; each node needs a GPU, or a trial's share of one, for a moment. Nodes that join
    later are not included. Raises `InputError` if the share of a GPU leaves a trial no memory, and `ClusterError` if no
    node answers.
    """
    if not gpus_per_trial:
        return CPU
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    # Ray hides a node's GPUs from a driver that has requested none, such as a job's.
    here = nodes == [ray.get_runtime_context().get_node_id()] and default_device() != "cpu"
    found = _own() if here else merged(_answers([request_hardware(node, min(1.0, gpus_per_trial)) for node in nodes]))
    if found.gpu:
        check_part(gpus_per_trial, found.memory, "--gpus-per-trial")
    return found


def _answers(pending: list[Any]) -> list[Hardware]:
    """Return the results that arrive in time. Late calls are cancelled, else they would take GPUs from trials.

    Nodes that are lost meanwhile are left out. Raises `ClusterError` if there is no result at all.
    """
    first, rest = ray.wait(pending)
    others, late = ray.wait(rest, num_returns=len(rest), timeout=PATIENCE_SECONDS) if rest else ([], [])
    for one in late:
        ray.cancel(one)
    found, lost = list[Hardware](), ""
    for one in (*first, *others):
        try:
            found.append(ray.get(one))
        except RayError as error:
            # No trial will run on a node that was just lost.
            if not is_lost(error):
                raise
            lost = in_words(error)
    if not found:
        raise ClusterError(f"no node with a GPU has answered ({lost})")
    return found


def merged(found: Sequence[Hardware]) -> Hardware:
    """Return hardware with the features that all GPUs have: each trial then computes in the same precision on any node.

    The CPU if no node has a GPU.
    """
    real = [one for one in found if one.gpu]
    if not real:
        return CPU
    names = " or ".join(dict.fromkeys(one.gpu for one in real))
    return Hardware(names, all(one.bf16 for one in real), min(one.memory for one in real))


def _own() -> Hardware:
    """Return the hardware of the calling process."""
    return hardware_of(default_device())


def request_hardware(node: str, gpus: float) -> Any:
    """Return the reference of the hardware of the node with this id, which determines it with `gpus` of its GPUs."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    # The process keeps GPU memory, so it must run no other task.
    options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": 0, "max_calls": 1, "scheduling_strategy": place}
    return ray.remote(**options)(_own).remote()
