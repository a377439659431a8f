"""Limits of the pool: how much shared memory it may take, what trials need of it, and what was read from disk.

`pool_of` starts the pool of a sweep or a search with its limit and ends it.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from heapq import nlargest
from types import SimpleNamespace
from typing import Any, NamedTuple

import ray
from grpc import RpcError
from ray._private import internal_api, state
from ray.exceptions import RayError

from condkd_ray.cluster.files import chunks_folder
from condkd_ray.cluster.options import ClusterOptions, NodeLoad
from condkd_ray.cluster.pool.actor import make_pool
from condkd_ray.core.config import content_hash
from condkd_ray.core.method import InputError
from condkd_ray.core.units import UNIT_BYTES, byte_size, parse_size
from condkd_ray.data.datasets import Dataset
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import round_bytes
from condkd_ray.trial.plan import Plan, PlannedTrial, Scope, pool_key

log = logging.getLogger(__name__)
STATS_SECONDS = 10.0
"""Longest wait, in seconds, for the statistics of the pool, and then of the nodes, after a sweep.

A node may have been lost a moment before.
"""


@contextmanager
def pool_of(options: ClusterOptions) -> Iterator[Any]:
    """Yield the pool of a sweep or a search and end it after the block."""
    limit = limit_of(options)
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


def limit_of(options: ClusterOptions) -> int:
    """Return the bytes that the pool may use of each node's object store: the given ones, or the default."""
    return default_limit() if options.pool_limit is None else options.pool_limit


class Round(NamedTuple):
    """A round of a trial's images in the pool."""

    num_bytes: int
    scope: Scope
    """The scope in effect, see `trial.plan.pool_key`."""
    key: str
    """Equal for trials that share each round (scope `inversion`)."""


def round_of(trial: PlannedTrial[Prepared]) -> Round:
    """Return a round of a trial whose artifacts exist."""
    return Round(chunk_bytes(trial.config, trial.prepared.teacher, trial.scope), trial.scope, trial.pool_key)


def planned_round(plan: Plan, dataset: Dataset) -> Round:
    """Return a round of a planned trial on `dataset`, before its teacher and condensed set exist."""
    config = plan.config
    # The settings of a condensed set stand for its contents; the key contains the settings of data and teacher anyway.
    hashes = defaultdict(lambda: content_hash(config.condensation))
    made_later: Any = SimpleNamespace(hashes=hashes)
    scope, key = pool_key(plan.scope, "", config, made_later)
    return Round(chunk_bytes(config, dataset, scope), scope, key)


def chunk_bytes(config: TrialConfig, shapes: Teacher | Dataset, scope: Scope = "trial") -> int:
    """Return the bytes of a round's images in the pool: with labels, and with logits if a trial reads them.

    `shapes`: has the shape of the images and the number of classes. `scope`: the trial's actual scope, see `pool_key`.
    Shared samples have logits as `shares_logits` says.
    """
    kept = config.shares_logits if scope != "trial" else config.keeps_logits
    return round_bytes(config, shapes.image_shape, shapes.num_classes, logits=kept)


def check_limit(options: ClusterOptions, configs: Sequence[TrialConfig], rounds: Sequence[Round]) -> None:
    """Raise `InputError` if the pool's part of a node's object store cannot hold a round of each trial at once.

    A trial's own rounds are on its node. Any node may map shared rounds, so they count on every node: with scope
    `inversion` one of each key in use, with scope `sweep` one of each trial that runs at once on the whole cluster.

    `configs`: of the trials, for their number at once. `rounds`: one for each trial; without any, nothing is checked.
    """
    if not rounds:
        return
    limit, loads = limit_of(options), options.loads(configs)
    at_once = min(sum(load.trials for load in loads), options.max_concurrent or len(rounds), len(rounds))
    held = {here: held_at_once(rounds, here, at_once) for here in {load.trials for load in loads}}
    shortages = [_Shortage(load, min(limit, load.store), held[load.trials]) for load in loads]
    worst = max(shortages, key=lambda shortage: shortage.missing)
    if worst.missing <= 0:
        return
    origin = "60 % of the smallest one" if options.pool_limit is None else "--pool-limit"
    part = f"{_rounded_down(worst.room)} of its object store of {byte_size(worst.load.store)}"
    value = f"{part}, {origin if limit <= worst.load.store else 'which is smaller than --pool-limit'}"
    raise InputError(f"pool limit of node {worst.load.address} is {value!r}; accepted: {worst.accepted}")


def held_at_once(rounds: Sequence[Round], here: int, at_once: int) -> list[Round]:
    """Return the rounds, of the most bytes, that a node may have to hold at the same time.

    `here`, `at_once`: numbers of trials that run at once on the node and on all nodes.
    """
    own = nlargest(here, [one for one in rounds if one.scope == "trial"])
    keys = {one.key: one for one in sorted(rounds) if one.scope == "inversion"}
    return nlargest(at_once, [*own, *keys.values(), *(one for one in rounds if one.scope == "sweep")])


class _Shortage(NamedTuple):
    """The rounds `held` at once on a node, and the `room` for them in bytes."""

    load: NodeLoad
    room: int
    held: Sequence[Round]

    @property
    def needed(self) -> int:
        return sum(one.num_bytes for one in self.held)

    @property
    def missing(self) -> int:
        """Bytes that do not fit; 0 or less if all do."""
        return self.needed - self.room

    @property
    def accepted(self) -> str:
        """What would be accepted, with the arithmetic, and what helps."""
        sizes = {one.num_bytes for one in self.held}
        each = f"{'' if len(sizes) == 1 else 'up to '}{byte_size(max(sizes))}"
        kinds: dict[Scope, str] = {
            "trial": "trial{} at once on this node",
            "inversion": "shared inversion{} at once on all nodes",
            "sweep": "trial{} at once on all nodes, whose images every trial receives",
        }
        counts: dict[Scope, int] = {scope: sum(one.scope == scope for one in self.held) for scope in kinds}
        whose = " and ".join(
            f"{'each of ' if count > 1 else ''}{count} {kinds[scope].format('s' if count > 1 else '')}"
            for scope, count in counts.items()
            if count
        )
        needed = _rounded_up(self.needed)
        helps = [
            *([f"--pool-limit {needed.replace(' ', '')}"] if self.needed < self.load.store else []),
            "a larger object store (`ray start --object-store-memory`)",
            *(["fewer trials at once (--max-concurrent)"] if len(self.held) > 1 else []),
            "fewer images a round (batch or images_per_round of the inversion)",
        ]
        return f"at least {needed}, a round of {each} for {whose}. What helps: {', or '.join(helps)}"


def _rounded_down(count: int) -> str:
    """Return a number of bytes with one decimal, at most `count`."""
    return f"{10 * count // UNIT_BYTES[_unit(count)] / 10} {_unit(count)}"


def _rounded_up(count: int) -> str:
    """Return a number of bytes with one decimal that `parse_size` reads, without the space, as `count` or more."""
    unit = _unit(count)
    tenths = math.ceil(10 * count / UNIT_BYTES[unit])
    # Parsing may round down.
    tenths += parse_size(f"{tenths / 10}{unit}", "size") < count
    return f"{tenths / 10} {unit}"


def _unit(count: int) -> str:
    return next((unit for unit in ("GB", "MB", "kB") if count >= UNIT_BYTES[unit]), "B")
