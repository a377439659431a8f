"""Words on samples and objects that went to disk for want of shared memory: never silently."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

STATS_SECONDS = 10.0
"""How long the pool, and then the nodes, are waited for when a sweep is over; some may just have been lost."""


def tell_of_spilling(pool: Any, limit: int) -> None:
    """Samples that had to be read from disk slow a sweep down, which nobody could tell from outside."""
    import ray
    from ray.exceptions import RayError

    try:
        # It also is waited for to have cleared up what it was told to.
        stats: Any = ray.get(pool.stats.remote(), timeout=STATS_SECONDS)
    except RayError:  # it is lost, which has been told of
        stats = {"shed": 0}
    if stats["shed"]:
        told = f"{stats['shed'] / 1e6:.0f} MB of samples were beyond the pool's limit of {limit / 1e6:.0f} MB"
        log.info(f"{told}: read from disk")
    spilled = spilled_by_ray()
    if spilled is None:
        log.info("a node has just been lost: whether Ray moved objects to disk is not known")
    elif spilled:
        room = "a lower --pool-limit leaves it more room"
        log.info(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: {room}")


def spilled_by_ray() -> int | None:
    """Bytes that the connected cluster has moved from its object stores to disk so far; None where it does not say."""
    import ray
    from grpc import RpcError
    from ray._private import internal_api, state

    here = ray.get_runtime_context().get_node_id()
    # Any node would do, but this one is alive as long as we are.
    own = next(node for node in ray.nodes() if node["NodeID"] == here)
    place = own["NodeManagerAddress"], own["NodeManagerPort"]
    try:
        reply = internal_api.get_memory_info_reply(state.state, *place, timeout_seconds=STATS_SECONDS)
    except RpcError:
        return None
    return reply.store_stats.spilled_bytes_total
