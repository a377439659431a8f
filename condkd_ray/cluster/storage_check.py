"""Whether all nodes of the cluster see one storage: asked before any work, as a trial could run on any of them."""

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
"""In which a node has to answer; starting a process there takes seconds."""
SHARED = "a folder that all nodes share, such as one on NFS, or a URI like s3://bucket/prefix with keys on each node"


def check_reach(storage: Location, what: str = "--storage") -> None:
    """Raise `InputError`, naming the node, where a node does not see `storage` as this process does, or cannot write.

    A folder is seen by the one node of a cluster of one, and not asked for; an object store takes keys that a node may
    lack. Nodes that join later are not asked.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and not isinstance(storage, Remote):
        return
    marker = f".marker-{secrets.token_hex(8)}"
    put_text(storage / marker, "")
    try:
        for node, wrong in failing_nodes(look, storage, marker).items():
            raise InputError(f"{what} is {str(storage)!r}, which node {node} cannot use ({wrong}); accepted: {SHARED}")
    finally:
        (storage / marker).unlink(missing_ok=True)


def look(storage: Location, marker: str) -> str:
    """What keeps this machine from using `storage`, where the driver has put `marker`; empty if nothing does."""
    try:
        if not (storage / marker).is_file():
            return "it does not find there what was written here"
        probe(storage)
    except (OSError, ValueError) as error:
        return reason(error)
    return ""


def failing_nodes(task: Callable[..., str], *given: Any) -> dict[str, str]:
    """Run `task(*given)` on every node; the addresses of those on which it does not return "", with what it returns."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [_asked(node["NodeID"], task, given) for node in nodes]
    # Of all, before anything is refused: a node that is cut off while it tries would leave its file there.
    told = [_answered(node["NodeID"], task, given, one) for node, one in zip(nodes, answers, strict=True)]
    return {node["NodeManagerAddress"]: wrong for node, wrong in zip(nodes, told, strict=True) if wrong}


def _asked(node: str, task: Callable[..., str], given: tuple[Any, ...]) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
    return ray.remote(**options)(task).remote(*given)


def _answered(node: str, task: Callable[..., str], given: tuple[Any, ...], answer: Any) -> str:
    """What the node says, asked again should it not have come to it.

    One that is lost meanwhile has nothing to say: no trial will run on it. That takes Ray some seconds to notice.
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
        answer = _asked(node, task, given)
