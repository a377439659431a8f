"""How trials run: where their files lie, what each takes of the cluster, and how long; and the pool they share."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condkd_ray.cluster.connection.resources import check_resources, check_room, crew_size
from condkd_ray.cluster.pool.actor import check_limit, default_limit, make_pool
from condkd_ray.cluster.worker.paths import chunks_folder
from condkd_ray.cluster.worker.retries import ATTEMPTS
from condkd_ray.core.storage import Location
from condkd_ray.trial.config import Allowance, TrialConfig
from condkd_ray.trial.run import CHECKPOINT_SECONDS

log = logging.getLogger(__name__)

STATS_SECONDS = 10.0
"""How long the pool, and then the nodes, are waited for when a sweep is over; some may just have been lost."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """What all trials of a sweep or a search have in common beside their work."""

    folder: Path
    """Of this process alone, for what Tune writes meanwhile."""
    storage: Location | None = None
    """What all nodes see, see `condkd_ray.cluster.connection.storage_check`; `folder` if not given."""
    cpus_per_trial: float = 1
    """CPUs held by a trial; also its number of threads, rounded down."""
    gpus_per_trial: float = 0
    """GPUs, or a part of one."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amounts of custom resources that a trial needs too."""
    per_producer: Allowance = Allowance()
    """What each producer of a trial with a pipeline gets, beside what the trial itself does."""
    max_concurrent: int | None = None
    """Trials at once, at most; by default as many as fit, also into a cluster that grows."""
    deadline: float | None = None
    """A `time.time()` from which no trial starts; each that runs stops after its round, with a checkpoint."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Between two checkpoints of a trial, at least."""
    pool_limit: int | None = None
    """Bytes of samples in shared memory, `default_limit` if not given; the rest is read from disk."""
    attempts: int = ATTEMPTS
    """Exceptions after which a trial is given up."""

    @property
    def place(self) -> Location:
        """Where the trials keep checkpoints and chunks; to be asked in the driver, as it depends on its directory."""
        if self.storage is None:
            return self.folder.resolve()
        return self.storage.absolute() if isinstance(self.storage, Path) else self.storage

    @property
    def threads(self) -> int:
        """Of a trial."""
        return max(1, int(self.cpus_per_trial))

    def gpus(self, config: TrialConfig) -> float:
        """GPUs that a trial holds with its producers."""
        return self.gpus_per_trial + crew_size(config) * self.per_producer.gpus

    @property
    def bundle(self) -> dict[str, float]:
        """What a trial itself takes, as Ray writes it."""
        amounts = {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}

    def check(self, configs: Sequence[TrialConfig]) -> None:
        """Raise `InputError` where the connected cluster could never run one of these."""
        check_resources(self.cpus_per_trial, self.gpus_per_trial, self.resources)
        check_room(self.cpus_per_trial, self.gpus_per_trial, self.per_producer, configs)

    @contextmanager
    def pool(self, chunk_bytes: Sequence[int]) -> Iterator[Any]:
        """The pool of the sweep, whose chunks have so many bytes; it ends with the block."""
        import ray

        limit = default_limit() if self.pool_limit is None else self.pool_limit
        check_limit(limit, chunk_bytes)
        pool = make_pool(chunks_folder(self.place), limit)
        try:
            yield pool
        finally:
            tell_of_spilling(pool, limit)
            ray.kill(pool)


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
