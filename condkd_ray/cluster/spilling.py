"""Words on samples and objects that went to disk for want of shared memory: never silently."""

from __future__ import annotations

from typing import Any

from condkd_ray.shell import say

STATS_SECONDS = 10.0
"""How long the pool is waited for when a sweep is over; it may be on a node that is lost."""


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
        say(f"{told}: read from disk")
    if spilled := spilled_by_ray():
        say(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: a lower --pool-limit leaves it more room")


def spilled_by_ray() -> int:
    """Bytes that the connected cluster has moved from its object stores to disk so far."""
    from ray._private import internal_api, state

    return internal_api.get_memory_info_reply(state.state).store_stats.spilled_bytes_total
