"""Check, before any work, that all nodes of the cluster can use the storage: a trial may run on any of them."""

import secrets
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError
from condkd_ray.core.storage import Location, Remote, probe, put_text, reason

PATIENCE_SECONDS = 60.0
"""Time limit for the reply of a node, in seconds; starting a process there takes seconds."""
SHARED = "a folder that all nodes share, such as one on NFS, or a URI like s3://bucket/prefix with keys on each node"


def check_reach(storage: Location, what: str = "--storage") -> None:
    """Raise `InputError`, naming the node, if a node cannot write to `storage` or reads other files there.

    A folder is not checked on a cluster of one node. An object store is checked there too, as the node may lack keys.
    Nodes that join later are not checked. `what`: the flag that names the storage, for the message.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and not isinstance(storage, Remote):
        return
    marker = f".marker-{secrets.token_hex(8)}"
    put_text(storage / marker, "")
    try:
        for node, wrong in failing_nodes(try_storage, storage, marker).items():
            raise InputError(f"{what} is {str(storage)!r}, which node {node} cannot use ({wrong}); accepted: {SHARED}")
    finally:
        (storage / marker).unlink(missing_ok=True)


def try_storage(storage: Location, marker: str) -> str:
    """Return the reason why this machine cannot use `storage`; empty if it can.

    `marker`: name of a file that the driver has written there.
    """
    try:
        if not (storage / marker).is_file():
            return "it does not find a file that was written here"
        probe(storage)
    except (OSError, ValueError) as error:
        return reason(error)
    return ""


def failing_nodes(task: Callable[..., str], *given: Any) -> dict[str, str]:
    """Run `task(*given)` on every node. Return the results that are not empty, by the address of the node.

    A node that does not respond has a result that states this.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [_start(node["NodeID"], task, given) for node in nodes]
    # Collect all results before an error is raised: a check that is cut off would leave its file behind.
    results = [_answer(node["NodeID"], task, given, one) for node, one in zip(nodes, answers, strict=True)]
    return {node["NodeManagerAddress"]: wrong for node, wrong in zip(nodes, results, strict=True) if wrong}


def _start(node: str, task: Callable[..., str], given: tuple[Any, ...]) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
    return ray.remote(**options)(task).remote(*given)


def _answer(node: str, task: Callable[..., str], given: tuple[Any, ...], answer: Any) -> str:
    """Return a node's result; repeat the check while it fails because of Ray.

    Returns an empty string for a node that is lost meanwhile, as no trial will run on it. Ray detects the loss after
    some seconds.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ray.get(answer, timeout=PATIENCE_SECONDS)
        except RayError as error:
            if not any(other["Alive"] for other in ray.nodes() if other["NodeID"] == node):
                return ""
            if isinstance(error, RayTaskError) or time.monotonic() > deadline:
                return f"it does not answer: {first_line(error)}"
        time.sleep(1)
        answer = _start(node, task, given)
