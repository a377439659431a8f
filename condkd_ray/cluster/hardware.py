"""What the trials of the connected cluster compute on: asked of its nodes, as the driver's need not have a GPU."""

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
"""In which nodes have to answer once one of them has; those whose GPUs are all taken do not until some are free."""


def trial_hardware(gpus_per_trial: float) -> Hardware:
    """What trials with so many GPUs compute on: the CPU without any, or where Ray's GPUs are on paper only.

    Blocks until a node has answered, which holds a GPU, or the part of one that a trial takes, for a moment. Nodes
    that join later are not asked. Raises `InputError` for a part of a GPU that leaves a trial no memory.
    """
    if not gpus_per_trial:
        return CPU
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) > 0]
    # Ray hides the GPUs of a node from a driver that has asked for none, as a job's.
    here = nodes == [ray.get_runtime_context().get_node_id()] and default_device() != "cpu"
    found = _own() if here else merged(_answers([_ask(node, min(1.0, gpus_per_trial)) for node in nodes]))
    if found.gpu:
        check_part(gpus_per_trial, found.memory, "--gpus-per-trial")
    return found


def _answers(asked: list[Any]) -> list[Hardware]:
    """What nodes answer in time. Whoever has not by then is asked no more, else it would take trials' GPUs later.

    Nodes that are lost meanwhile have no answer. Raises `ClusterError` where there is none at all.
    """
    first, rest = ray.wait(asked)
    others, late = ray.wait(rest, num_returns=len(rest), timeout=PATIENCE_SECONDS) if rest else ([], [])
    for one in late:
        ray.cancel(one)
    found, lost = list[Hardware](), ""
    for one in (*first, *others):
        try:
            found.append(ray.get(one))
        except RayError as error:
            # No trial will run on a node that has just gone.
            if not is_lost(error):
                raise
            lost = in_words(error)
    if not found:
        raise ClusterError(f"no node with a GPU says what it has ({lost})")
    return found


def merged(found: Sequence[Hardware]) -> Hardware:
    """What nodes have in common: all trials compute in one precision, on whichever of them they run."""
    real = [one for one in found if one.gpu]
    if not real:
        return CPU
    names = " or ".join(dict.fromkeys(one.gpu for one in real))
    return Hardware(names, all(one.bf16 for one in real), min(one.memory for one in real))


def _own() -> Hardware:
    """Of the process that asks."""
    return hardware_of(default_device())


def _ask(node: str, gpus: float) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    # Its process holds memory of the GPU, so it serves no other task.
    options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": 0, "max_calls": 1, "scheduling_strategy": place}
    return ray.remote(**options)(_own).remote()
