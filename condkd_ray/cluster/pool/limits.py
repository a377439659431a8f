"""Limits of the pool: how much shared memory it may take, what trials need of it, and what was read from disk.

`pool_of` starts the pool of a sweep or a search with its limit and ends it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from grpc import RpcError
from ray._private import internal_api, state
from ray.exceptions import RayError

from condkd_ray.cluster.files import chunks_folder
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.core.method import require
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.plan import Scope

log = logging.getLogger(__name__)
STATS_SECONDS = 10.0
"""Longest wait, in seconds, for the statistics of the pool, and then of the nodes, after a sweep.

A node may have been lost a moment before.
"""


@contextmanager
def pool_of(options: ClusterOptions, chunks: Sequence[int]) -> Iterator[Any]:
    """Yield the pool of a sweep and end it after the block.

    `chunks`: for each trial, the bytes of a round of images. Raises `InputError` if a round exceeds the pool's limit.
    """
    limit = default_limit() if options.pool_limit is None else options.pool_limit
    check_limit(limit, chunks)
    pool = make_pool(chunks_folder(options.storage_root), limit)
    try:
        yield pool
    finally:
        log_spilling(pool, limit)
        ray.kill(pool)


def log_spilling(pool: Any, limit: int) -> None:
    """Log the bytes that the pool's limit or Ray has moved to disk, because reading them slows a sweep down.

    `limit`: the pool's limit in bytes.
    """
    try:
        # The reply also shows that the pool has finished all earlier calls, including deletions.
        stats: Any = ray.get(pool.stats.remote(), timeout=STATS_SECONDS)
    except RayError:  # the pool is lost, which is logged elsewhere
        stats = {"shed": 0}
    if stats["shed"]:
        message = f"{stats['shed'] / 1e6:.0f} MB of samples exceeded the pool's limit of {limit / 1e6:.0f} MB"
        log.info(f"{message} and were read from disk")
    spilled = spilled_by_ray()
    if spilled is None:
        log.info("a node was lost just now: bytes that Ray moved to disk are unknown")
    elif spilled:
        room = "a lower --pool-limit leaves room for it"
        log.info(f"Ray moved {spilled / 1e6:.0f} MB of its object store to disk: {room}")


def spilled_by_ray() -> int | None:
    """Return the bytes that the cluster has moved from object stores to disk so far; None if it does not respond."""
    here = ray.get_runtime_context().get_node_id()
    # The statistics of any node cover the cluster; this node is alive as long as the driver is.
    own = next(node for node in ray.nodes() if node["NodeID"] == here)
    place = own["NodeManagerAddress"], own["NodeManagerPort"]
    try:
        reply = internal_api.get_memory_info_reply(state.state, *place, timeout_seconds=STATS_SECONDS)
    except RpcError:
        return None
    return reply.store_stats.spilled_bytes_total


def default_limit() -> int:
    """Return the default `limit` in bytes: 60 % of the smallest object store, as Ray puts other objects there too."""
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    return int(0.6 * min(stores))


def chunk_bytes(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> int:
    """Return the bytes of a round's images in the pool: with labels, and with logits if a trial reads them.

    `scope`: the trial's actual scope, see `pool_key`. Shared samples have logits as `shares_logits` says.
    """
    teacher, kept = prepared.teacher, config.shares_logits if scope != "trial" else config.keeps_logits
    return round_bytes(config, teacher.image_shape, teacher.num_classes, logits=kept)


def check_limit(limit: int, chunks: Sequence[int]) -> None:
    """Raise `InputError` if a round of images exceeds `limit`. `chunks`: bytes of a round, one number per trial."""
    require(limit >= max(chunks), "pool limit", f"{limit} bytes", f"at least the {max(chunks)} bytes of a round")
