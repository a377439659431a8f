"""Checks that all nodes of the cluster can use the storage: before any work, and on nodes that join later."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from condkd_ray.core.errors import first_line
from condkd_ray.core.method import InputError
from condkd_ray.core.storage import Location, Remote, files, no_room, probe, put_text, reason

PATIENCE_SECONDS = 60.0
"""Time limit for the replies of all nodes, in seconds; starting a process there takes seconds."""
MARKER = ".marker-"
"""First part of the names of the files by which a node recognises the storage."""
PAUSES = (1.0, 5.0, 15.0)
"""Seconds between the attempts of a node to use the storage, which may be slow to respond (our choice)."""
SHARED = "a folder that all nodes share, such as one on NFS, or a URI like s3://bucket/prefix with keys on each node"


def check_reach(storage: Location, what: str = "--storage") -> None:
    """Raise `InputError`, naming the node, if a node cannot write to `storage` or reads other files there.

    A folder is not checked on a cluster of one node. An object store is checked there too, as the node may lack keys.
    Nodes that join later check it themselves, see `why_unusable`. `what`: the flag that names the storage, for the
    message.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and not isinstance(storage, Remote):
        return
    with marked(storage) as marker:
        for node, wrong in failing_nodes(try_storage, storage, marker).items():
            raise InputError(f"{what} is {str(storage)!r}, which node {node} cannot use ({wrong}); accepted: {SHARED}")


@contextmanager
def marked(storage: Location) -> Iterator[str]:
    """Write an empty file into `storage` and yield its name; delete the file after the block.

    Files of this kind that killed drivers have left are deleted: only one driver uses a storage.
    """
    for left in files(storage):
        if left.name.startswith(MARKER):
            left.unlink(missing_ok=True)
    marker = f"{MARKER}{secrets.token_hex(8)}"
    put_text(storage / marker, "")
    try:
        yield marker
    finally:
        (storage / marker).unlink(missing_ok=True)


def why_unusable(storage: Location, marker: str) -> str:
    """Return why this node cannot use `storage`, naming both, after several attempts; empty if it can.

    `marker`: name of a file that the driver has written there.
    """
    wrong = try_storage(storage, marker)
    for pause in PAUSES:
        if not wrong:
            return ""
        time.sleep(pause)
        wrong = try_storage(storage, marker)
    node = ray.util.get_node_ip_address()
    return wrong and f"node {node} cannot use the storage {str(storage)!r} ({wrong}); accepted: {SHARED}"


def try_storage(storage: Location, marker: str) -> str:
    """Return the reason why this machine cannot use `storage`; empty if it can, even if it is full.

    `marker`: name of a file that the driver has written there.
    """
    try:
        if not (storage / marker).is_file():
            return "it does not find a file that was written here"
        probe(storage)
    except (OSError, ValueError) as error:
        return "" if no_room(error) else reason(error)
    return ""


def failing_nodes(task: Callable[..., str], *given: Any) -> dict[str, str]:
    """Run `task(*given)` on every node. Return the results that are not empty, by the address of the node.

    A node that does not respond has a result that states this.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [_start(node["NodeID"], task, given) for node in nodes]
    # The nodes work side by side, so they have one deadline in common.
    deadline = time.monotonic() + PATIENCE_SECONDS
    # Collect all results before an error is raised: a check that is cut off would leave its file behind.
    results = [_answer(node["NodeID"], task, given, one, deadline) for node, one in zip(nodes, answers, strict=True)]
    return {node["NodeManagerAddress"]: wrong for node, wrong in zip(nodes, results, strict=True) if wrong}


def _start(node: str, task: Callable[..., str], given: tuple[Any, ...]) -> Any:
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
    return ray.remote(**options)(task).remote(*given)


def _answer(node: str, task: Callable[..., str], given: tuple[Any, ...], answer: Any, deadline: float) -> str:
    """Return a node's result; repeat the check while it fails because of Ray, until `deadline`.

    Returns an empty string for a node that is lost meanwhile, as no trial will run on it. Ray detects the loss after
    some seconds.
    """
    while True:
        try:
            return ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except RayError as error:
            if not any(other["Alive"] for other in ray.nodes() if other["NodeID"] == node):
                return ""
            if isinstance(error, RayTaskError) or time.monotonic() > deadline:
                return f"it does not answer: {first_line(error)}"
        time.sleep(1)
        answer = _start(node, task, given)
