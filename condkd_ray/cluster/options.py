"""Options of trials on a cluster: folders and resources, and checks that the cluster has these resources.

A chunk is a file with consecutive synthetic samples of a trial, see `condkd_ray.cluster.pool`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from condkd_ray.cluster.files import ATTEMPTS
from condkd_ray.core.method import require
from condkd_ray.core.storage import Location
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.run import CHECKPOINT_SECONDS

UNITS = 10_000
"""Ray's units per CPU, GPU or other resource. Ray counts whole units and drops the rest of an amount."""


class NodeLoad(NamedTuple):
    """Trials at once on a node of the cluster."""

    address: str
    store: int
    """Bytes of its object store."""
    trials: int


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options that all trials of a sweep or a search have in common."""

    folder: Path
    """Folder that only this process uses, for Tune's files and, if `storage` is None, checkpoints and chunks."""
    storage: Location | None = None
    """Storage for checkpoints and chunks that all nodes see (`condkd_ray.cluster.storage_check`); None: `folder`."""
    cpus_per_trial: float = 1
    """CPUs held by a trial; also its number of threads, rounded down but at least 1."""
    gpus_per_trial: float = 0
    """GPUs held by a trial, or a fraction of one."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amounts of custom resources held by a trial, by name."""
    per_producer: Allowance = Allowance()
    """Resources of each producer of a trial with a pipeline, in addition to the trial's own."""
    max_concurrent: int | None = None
    """Largest number of trials at once; None: as many as fit, also on a cluster that grows."""
    deadline: float | None = None
    """Time, as `time.time()`, from which no trial starts, and each running one stops after its round with a checkpoint.

    None: no limit.
    """
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Shortest time between two checkpoints of a trial, in seconds."""
    pool_limit: int | None = None
    """Bytes of samples in each node's shared memory; more are read from disk. None: `pool.default_limit`."""
    device_pool_limit: int | None = None
    """Bytes of samples that each trial holds on its GPU; refused on a CPU.

    None: a quarter of the trial's share of the GPU's memory.
    """
    attempts: int = ATTEMPTS
    """Number of exceptions after which a trial is given up."""

    @property
    def storage_root(self) -> Location:
        """Folder of checkpoints and chunks, as an absolute path or a remote location.

        Read this in the driver, as a relative path depends on the working directory.
        """
        if self.storage is None:
            return self.folder.resolve()
        return self.storage.absolute() if isinstance(self.storage, Path) else self.storage

    def check(self, configs: Sequence[TrialConfig]) -> None:
        """Raise `InputError` if the connected cluster could never run one of these trials with its producers."""
        producers, each = max(map(num_producers, configs)), self.per_producer
        check_resources(self.cpus_per_trial, self.gpus_per_trial, self.resources)
        _check_amounts("per producer", each.cpus, each.gpus)
        requested = f"{_amounts(self.bundle)} and {producers} producers of {_amounts(each.bundle)}"
        held = f"at most what the machines have, {'; '.join(_amounts(_countable(node)) for node in _nodes())}"
        require(self._num_fitting(producers, 1) > 0, "resources per trial", requested, held)

    def at_once(self, configs: Sequence[TrialConfig]) -> int:
        """Return how many of these trials run at once with their producers, at most `max_concurrent`."""
        fitting = self._num_fitting(max(map(num_producers, configs)))
        return min(fitting, self.max_concurrent or fitting)

    def loads(self, configs: Sequence[TrialConfig]) -> list[NodeLoad]:
        """Return for each node how many of these trials may run there at once, at most `max_concurrent`."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        placed = _placed(self.bundle, math.inf, self.per_producer.bundle, max(map(num_producers, configs)))
        return [
            NodeLoad(
                node["NodeManagerAddress"],
                int(node["Resources"].get("object_store_memory", 0)),
                min(count, self.max_concurrent or count),
            )
            for node, count in zip(nodes, placed, strict=True)
        ]

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of the trial's own process in the form of a Ray placement bundle."""
        return _bundle(self.cpus_per_trial, self.gpus_per_trial, self.resources)

    def _num_fitting(self, producers: int, most: float = math.inf) -> int:
        """Return how many trials with `producers` producers fit on the nodes, at most `most`."""
        return _fitting(self.bundle, most, self.per_producer.bundle, producers)


class _Node:
    """The free resources of a node in Ray's units.

    GPUs are counted one by one, because a part of a GPU must be on one GPU.
    """

    def __init__(self, resources: Mapping[str, float]) -> None:
        # Ray reports whole units, which a float may miss by a little.
        self._free = {name: round(amount * UNITS) for name, amount in resources.items()}
        self._gpus = [UNITS] * (self._free.pop("GPU", 0) // UNITS)

    def room(self, bundle: Mapping[str, float], beside: Mapping[str, float] | None = None) -> int:
        """Return how many times the resources of a bundle are free, once those of `beside` are taken.

        Returns -1 if `beside` does not fit.
        """
        if beside is not None:
            if not self.room(beside):
                return -1
            node = copy.copy(self)
            node._free, node._gpus = dict(self._free), list(self._gpus)
            node.take(beside)
            return node.room(bundle)
        wanted, part, count = _wanted(bundle)
        rooms = [self._free.get(name, 0) // amount for name, amount in wanted.items()]
        if count:
            rooms.append(sum(free // part for free in self._gpus) // count)
        return min(rooms)

    def take(self, bundle: Mapping[str, float], times: int = 1) -> None:
        """Take the resources of a bundle so many times; there must be room for it."""
        wanted, part, count = _wanted(bundle)
        for name, amount in wanted.items():
            self._free[name] = self._free.get(name, 0) - amount * times
        for _ in range(times if count else 0):
            # Like Ray, take a part of a GPU from the GPU with the smallest free part.
            fitting = [i for i, free in enumerate(self._gpus) if free >= part]
            for i in sorted(fitting, key=self._gpus.__getitem__)[:count]:
                self._gpus[i] -= part


def check_resources(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> None:
    """Raise `InputError` if no node of the connected cluster has these CPUs and GPUs, or if an amount is not accepted.

    `more`: amounts of custom resources by name.
    """
    _check_amounts("per trial", cpus_per_trial, gpus_per_trial)
    requested = _bundle(cpus_per_trial, gpus_per_trial, more or {})
    offers = sorted(map(_countable, _nodes()), key=lambda offer: (-offer["GPU"], -offer["CPU"]))
    there = "; ".join(dict.fromkeys(map(_amounts, offers)))
    accepted = f"at most what one machine has, of {there or 'none'}"
    require(_fitting(requested, 1) > 0, "resources per trial", _amounts(requested), accepted)


def slots(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> int:
    """Return how many trials with these resources run at once on the connected cluster.

    `more`: amounts of custom resources by name.
    """
    return _fitting(_bundle(cpus_per_trial, gpus_per_trial, more or {}))


def _fitting(
    trial: Mapping[str, float], most: float = math.inf, producer: Mapping[str, float] | None = None, producers: int = 0
) -> int:
    """Return how many trials fit on the nodes, each with its `producers`, at most `most`."""
    return int(min(most, sum(_placed(trial, most, producer, producers))))


def _placed(trial: Mapping[str, float], most: float, producer: Mapping[str, float] | None, producers: int) -> list[int]:
    """Return how many trials fit on each node, each with its `producers`; no more are placed once there are `most`."""
    nodes = [_Node(resources) for resources in _nodes()]
    if producer is None or not producers:
        return [node.room(trial) for node in nodes]
    rooms, left = [node.room(producer) for node in nodes], [node.room(producer, trial) for node in nodes]
    # The change of the room for producers, in all, by a trial on each node.
    gains = [_gain(*both) for both in zip(rooms, left, strict=True)]
    counts = [0] * len(nodes)
    while nodes and sum(counts) < most:
        # The trial goes to the node on which it leaves room for the most producers in all.
        best = gains.index(max(gains))
        if sum(rooms) + gains[best] < producers:
            break
        nodes[best].take(trial)
        counts[best] += 1
        rooms[best], changed, open_places = left[best], {best}, producers
        for n, room in enumerate(rooms):
            if here := min(room, open_places):
                nodes[n].take(producer, here)
                open_places -= here
                changed.add(n)
            elif not open_places:
                break
        for n in changed:
            rooms[n], left[n] = nodes[n].room(producer), nodes[n].room(producer, trial)
            gains[n] = _gain(rooms[n], left[n])
    return counts


def _gain(room: int, left: int) -> float:
    """Return the change of a node's room for producers by a trial, after which `left` is free; -inf without room."""
    return left - room if left >= 0 else -math.inf


def _wanted(bundle: Mapping[str, float]) -> tuple[dict[str, int], int, int]:
    """Return the resources of a bundle without GPUs, the part that it takes of each of its GPUs, and their number."""
    wanted = {name: _units(amount) for name, amount in bundle.items()}
    gpus = wanted.pop("GPU", 0)
    return wanted, min(gpus, UNITS), -(-gpus // UNITS)


def _bundle(cpus: float, gpus: float, more: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in {"CPU": cpus, "GPU": gpus, **more}.items() if amount}


def _units(amount: float) -> int:
    return int(amount * UNITS)


def num_producers(config: TrialConfig) -> int:
    """Return the number of producers of a trial: processes that make its images; 0 without a pipeline."""
    return 0 if config.pipeline is None else config.pipeline.producers


def _check_amounts(unit: str, cpus: float, gpus: float) -> None:
    least = 1 / UNITS
    require(least <= cpus < math.inf, f"CPUs {unit}", cpus, f"{least:g} or more, and finite")
    whole = gpus > 1 and float(gpus).is_integer()
    accepted = f"0, {least:g} to 1, or a whole number"
    require(gpus == 0 or least <= gpus <= 1 or whole, f"GPUs {unit}", gpus, accepted)


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    """Return a node's resources without memory and without the names by which Ray identifies the node."""
    own = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "accelerator_type:"))}
    return {"CPU": 0.0, "GPU": 0.0} | {k: v for k, v in own.items() if k not in ("memory", "object_store_memory")}


def _amounts(amounts: Mapping[str, float]) -> str:
    plurals = {"CPU": "CPUs", "GPU": "GPUs"}
    return ", ".join(f"{amount:g} {plurals.get(name, name)}" for name, amount in amounts.items())
