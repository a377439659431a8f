"""Options of trials on a cluster: folders, resources per trial, and checks that the machines have these resources."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from condkd_ray.cluster.files import ATTEMPTS
from condkd_ray.core.method import require
from condkd_ray.core.storage import Location
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.run import CHECKPOINT_SECONDS

UNITS = 10_000
"""Units in which Ray counts one CPU, GPU or other resource, as integers: it drops what is left of an amount."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options that all trials of a sweep or a search have in common."""

    folder: Path
    """Folder of this process alone, for Tune's temporary files."""
    storage: Location | None = None
    """Storage that all nodes see, see `condkd_ray.cluster.storage_check`; `folder` if not given."""
    cpus_per_trial: float = 1
    """CPUs held by a trial; also its number of threads, rounded down."""
    gpus_per_trial: float = 0
    """GPUs held by a trial, or a fraction of one."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Amounts of custom resources held by a trial, by name."""
    per_producer: Allowance = Allowance()
    """Resources of each producer of a trial with a pipeline, in addition to the trial's own."""
    max_concurrent: int | None = None
    """Largest number of trials at once; by default as many as fit, also on a cluster that grows."""
    deadline: float | None = None
    """A `time.time()` from which no trial starts; each running one stops after its round, with a checkpoint."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Shortest time between two checkpoints of a trial."""
    pool_limit: int | None = None
    """Bytes of samples in shared memory, `pool.default_limit` if not given; the rest is read from disk."""
    device_pool_limit: int | None = None
    """Bytes of samples of each trial on its GPU; a quarter of the trial's share of it by default. For GPUs alone."""
    attempts: int = ATTEMPTS
    """Number of exceptions after which a trial is given up."""

    @property
    def place(self) -> Location:
        """Folder of checkpoints and chunks. Read it in the driver: a relative path depends on the working directory."""
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
        require(self._teams(producers, 1) > 0, "resources per trial", requested, held)

    def at_once(self, configs: Sequence[TrialConfig]) -> int:
        """Return how many of these trials run at once with their producers, at most `max_concurrent`."""
        fitting = self._teams(max(map(num_producers, configs)))
        return min(fitting, self.max_concurrent or fitting)

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of the trial's own process in the form of a Ray placement bundle."""
        return _bundle(self.cpus_per_trial, self.gpus_per_trial, self.resources)

    def _teams(self, producers: int, most: float = math.inf) -> int:
        """Return how many trials with `producers` producers fit on the nodes, at most `most`."""
        return _fitting([self.bundle, *[self.per_producer.bundle] * producers], most)


class _Node:
    """Free resources of a node in Ray's units, and of each of its GPUs, because a part of a GPU must be on one GPU."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self._free = {name: _units(amount) for name, amount in resources.items()}
        self._gpus = [UNITS] * (self._free.pop("GPU", 0) // UNITS)

    def take(self, bundle: Mapping[str, float]) -> bool:
        """Take the resources of a bundle if all of them are free; return whether they were."""
        wanted = {name: _units(amount) for name, amount in bundle.items()}
        gpus = wanted.pop("GPU", 0)
        part, count = min(gpus, UNITS), -(-gpus // UNITS)
        # Like Ray, take a part from the GPU that has least left.
        chosen = sorted((i for i, free in enumerate(self._gpus) if free >= part), key=self._gpus.__getitem__)[:count]
        if len(chosen) < count or any(self._free.get(name, 0) < amount for name, amount in wanted.items()):
            return False
        for i in chosen:
            self._gpus[i] -= part
        for name, amount in wanted.items():
            self._free[name] -= amount
        return True


def check_resources(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> None:
    """Raise `InputError` if no node of the connected cluster could ever run such a trial.

    `more`: amounts of custom resources by name.
    """
    _check_amounts("per trial", cpus_per_trial, gpus_per_trial)
    requested = _bundle(cpus_per_trial, gpus_per_trial, more or {})
    offers = sorted(map(_countable, _nodes()), key=lambda offer: (-offer["GPU"], -offer["CPU"]))
    there = "; ".join(dict.fromkeys(map(_amounts, offers)))
    accepted = f"at most what one machine has, of {there or 'none'}"
    require(_fitting([requested], 1) > 0, "resources per trial", _amounts(requested), accepted)


def slots(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> int:
    """Return how many such trials run at once on the connected cluster."""
    return _fitting([_bundle(cpus_per_trial, gpus_per_trial, more or {})])


def _fitting(team: Sequence[Mapping[str, float]], most: float = math.inf) -> int:
    """Return how many times all bundles of `team` fit on the nodes, at most `most`; large bundles are placed first."""
    nodes, placed = [_Node(resources) for resources in _nodes()], 0
    bundles = sorted(team, key=lambda bundle: (len(bundle), bundle.get("GPU", 0), bundle["CPU"]), reverse=True)
    while placed < most and all(any(node.take(bundle) for node in nodes) for bundle in bundles):
        placed += 1
    return placed


def _bundle(cpus: float, gpus: float, more: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in {"CPU": cpus, "GPU": gpus, **more}.items() if amount}


def _units(amount: float) -> int:
    return int(amount * UNITS)


def num_producers(config: TrialConfig) -> int:
    """Return the number of processes that a trial has in addition to its own."""
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
