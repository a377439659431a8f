"""Options of trials on a cluster: folders and resources, and checks that the cluster has these resources."""

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


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options that all trials of a sweep or a search have in common."""

    folder: Path
    """Folder of this process alone, for Tune's temporary files and, if `storage` is None, checkpoints and chunks."""
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
        cpus, gpus, each = self.cpus_per_trial, self.gpus_per_trial, self.per_producer
        producers = max(map(num_producers, configs))
        check_resources(cpus, gpus, self.resources)
        _check_amounts("per producer", each.cpus, each.gpus)
        requested = f"{_amount(cpus, gpus)} and {producers} producers of {_amount(each.cpus, each.gpus)}"
        held = " + ".join(_amount(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes())
        require(self._teams(producers) > 0, "resources per trial", requested, f"at most what the machines have, {held}")

    def at_once(self, configs: Sequence[TrialConfig]) -> int:
        """Return how many of these trials run at once with their producers, at most `max_concurrent`."""
        fitting = slots(self.cpus_per_trial, self.gpus_per_trial, self.resources)
        fitting = min(fitting, self._teams(max(map(num_producers, configs))))
        return min(fitting, self.max_concurrent or fitting)

    def _teams(self, producers: int) -> int:
        """Return how many trials with `producers` producers fit on the nodes, placed bundle by bundle."""
        each = self.per_producer.cpus, self.per_producer.gpus
        wanted = [(self.cpus_per_trial, self.gpus_per_trial), *[each] * producers]
        free, placed = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in _nodes()], 0
        while True:
            for cpus, gpus in wanted:
                found = next((node for node in free if node[0] >= cpus and node[1] >= gpus), None)
                if found is None:
                    return placed
                free[free.index(found)] = found[0] - cpus, found[1] - gpus
            placed += 1


def check_resources(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> None:
    """Raise `InputError` if no node of the connected cluster has these CPUs and GPUs, or if an amount is not accepted.

    `more`: amounts of custom resources by name.
    """
    _check_amounts("per trial", cpus_per_trial, gpus_per_trial)
    requested = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **(more or {})}
    offers = sorted(map(_countable, _nodes()), key=lambda offer: (-offer["GPU"], -offer["CPU"]))
    there = "; ".join(dict.fromkeys(map(_amounts, offers)))
    fits = any(all(offer.get(name, 0) >= amount for name, amount in requested.items()) for offer in _nodes())
    require(fits, "resources per trial", _amounts(requested), f"at most what one machine has, of {there or 'none'}")


def slots(cpus_per_trial: float, gpus_per_trial: float, more: Mapping[str, float] | None = None) -> int:
    """Return how many trials with these resources run at once on the connected cluster.

    `more`: amounts of custom resources by name.
    """
    requested = {"CPU": cpus_per_trial, "GPU": gpus_per_trial, **(more or {})}
    return sum(
        int(min(offer.get(name, 0) / amount for name, amount in requested.items() if amount)) for offer in _nodes()
    )


def num_producers(config: TrialConfig) -> int:
    """Return the number of producers of a trial: processes that make its images; 0 without a pipeline."""
    return 0 if config.pipeline is None else config.pipeline.producers


def _check_amounts(unit: str, cpus: float, gpus: float) -> None:
    require(0 < cpus < math.inf, f"CPUs {unit}", cpus, "more than 0")
    whole = gpus > 1 and float(gpus).is_integer()
    require(0 <= gpus <= 1 or whole, f"GPUs {unit}", gpus, "0 to 1, or a whole number")


def _nodes() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _countable(resources: Mapping[str, float]) -> dict[str, float]:
    """Return a node's resources without memory and without the names by which Ray identifies the node."""
    own = {name: amount for name, amount in resources.items() if not name.startswith(("node:", "accelerator_type:"))}
    return {"CPU": 0.0, "GPU": 0.0} | {k: v for k, v in own.items() if k not in ("memory", "object_store_memory")}


def _amounts(amounts: Mapping[str, float]) -> str:
    custom = [f"{amount:g} {name}" for name, amount in amounts.items() if name not in ("CPU", "GPU")]
    return ", ".join([f"{amounts['CPU']:g} CPUs", f"{amounts['GPU']:g} GPUs", *custom])


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"
