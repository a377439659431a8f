"""Options of a run: its folders, the resources of each trial, and its limits. They do not change results."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from condkd_ray.core.method import require
from condkd_ray.core.storage import Location, locate
from condkd_ray.core.units import parse_duration, parse_size
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.device_pool import FLAG, check_on_gpu
from condkd_ray.trial.plan import Scope

if TYPE_CHECKING:
    from condkd_ray.cluster.options import ClusterOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Folders of a run, resources of its trials on a cluster, and limits of the run.

    The commands have a flag for each field. Values given as text are parsed once, by `check` at the latest.
    """

    out: Path = Path("runs/experiment")
    """Folder of the results. The same folder again continues the run: finished trials stay."""
    storage: str | None = None
    """Folder that all nodes see, or `s3://bucket/prefix`, for checkpoints and chunks of running trials. No other
    experiment may use it. `--out` if not given."""
    cache: Path | None = None
    """Folder of teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    address: str | None = None
    """Address of a Ray cluster; RAY_ADDRESS if not given, else a private cluster on this machine."""
    cpus_per_trial: float = 1.0
    """CPUs held by each trial; also its number of threads, rounded down but at least 1."""
    gpus_per_trial: float = 0.0
    """GPUs held by each trial: 0 to 1, or a whole number."""
    cpus_per_producer: float = 1.0
    """CPUs held by each producer of a trial with a pipeline, in addition to the trial's own."""
    gpus_per_producer: float = 0.0
    """GPUs held by each producer of a trial with a pipeline, in addition to the trial's own."""
    resource: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=AMOUNT of a custom resource held by each trial, which then runs only on nodes that offer it."""
    max_concurrent: int | None = None
    """Largest number of trials at once; as many as fit if not given."""
    time_budget: str | None = None
    """Time from the start of the command, such as 30m, 2h or 1h30m. When it is spent no trial starts, and each
    running one stops after its round, with a checkpoint: the same command continues from there."""
    share: Scope = "trial"
    """Trials that share synthetic images. `trial`: none. `inversion`: trials whose images would be equal; the images
    are made once, and the numbers do not change. `sweep`: all trials of one teacher draw from the images of all of
    them, which makes separate arms."""
    pool_limit: str | None = None
    """Shared memory of each node for synthetic images, such as 500MB or 4GB; images beyond it are read from disk, which
    is logged. 60 % of the smallest node's object store if not given."""
    device_pool_limit: str | None = None
    """Memory of each trial's GPU for its synthetic images, such as 500MB or 4GB; images beyond it stay in the CPU's
    memory and are copied when they are drawn. A quarter of the trial's share of the GPU if not given."""
    verbose: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also print each round with its losses, the node of each trial, and the output of Ray and its processes. In
    another program the level of the logger `condkd_ray` decides."""
    fresh: bool = False
    """Move the content of `--out` aside, delete trials' files in a separate `--storage`, and start over."""

    @cached_property
    def storage_root(self) -> Location:
        """Folder of trials' checkpoints and chunks. Raises `InputError` for a storage that is not accepted."""
        return locate(str(self.out) if self.storage is None else self.storage)

    @property
    def storage_flag(self) -> str:
        """Name of the flag that sets `storage_root`."""
        return "--out" if self.storage is None else "--storage"

    @cached_property
    def budget_seconds(self) -> float:
        """`time_budget` in seconds; infinite if not given. Raises `InputError` if it cannot be parsed."""
        return math.inf if self.time_budget is None else parse_duration(self.time_budget, "--time-budget")

    @property
    def per_producer(self) -> Allowance:
        """Resources of each producer of a trial."""
        return Allowance(self.cpus_per_producer, self.gpus_per_producer)

    @cached_property
    def resources(self) -> dict[str, float]:
        """Amounts of custom resources by name. Raises `InputError` for a bad form or a repeated name."""
        pairs = [_resource(text) for text in self.resource]
        require(len(dict(pairs)) == len(pairs), "--resource", " ".join(self.resource), "each NAME once")
        return dict(pairs)

    @cached_property
    def pool_bytes(self) -> int | None:
        """`pool_limit` in bytes; None if not given. Raises `InputError` if it cannot be parsed."""
        return None if self.pool_limit is None else parse_size(self.pool_limit, "--pool-limit")

    @cached_property
    def device_pool_bytes(self) -> int | None:
        """`device_pool_limit` in bytes; None if not given. Raises `InputError` if it cannot be parsed."""
        return None if self.device_pool_limit is None else parse_size(self.device_pool_limit, FLAG)

    @property
    def per_trial(self) -> Allowance:
        """Resources of each trial, without its producers."""
        return Allowance(self.cpus_per_trial, self.gpus_per_trial)

    def check(self) -> None:
        """Parse all values given as text. Raises `InputError` for an invalid option."""
        most = self.max_concurrent
        require(most is None or most >= 1, "--max-concurrent", most, "an integer >= 1")
        _ = self.storage_root, self.budget_seconds, self.resources, self.pool_bytes, self.device_pool_bytes
        check_on_gpu(self.device_pool_limit, self.gpus_per_trial > 0, "none, or --gpus-per-trial above 0")

    def of_cluster(self, deadline: float) -> "ClusterOptions":
        """Return the options of a sweep or a search that ends at `deadline`, a `time.time()`.

        Raises `InputError` for an option that cannot be parsed.
        """
        # Imported here, as flags are made of this class, and that module imports PyTorch.
        from condkd_ray.cluster.options import ClusterOptions

        return ClusterOptions(
            folder=self.out,
            storage=self.storage_root,
            cpus_per_trial=self.cpus_per_trial,
            gpus_per_trial=self.gpus_per_trial,
            resources=self.resources,
            per_producer=self.per_producer,
            max_concurrent=self.max_concurrent,
            deadline=deadline,
            pool_limit=self.pool_bytes,
            device_pool_limit=self.device_pool_bytes,
        )


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    accepted = "NAME=AMOUNT with an amount of 0.0001 to 1, or a whole one, such as big_memory=1"
    require(name not in ("CPU", "GPU"), "--resource", text, "--cpus-per-trial and --gpus-per-trial for these")
    require(bool(name) and re.fullmatch(r"\d+(\.\d+)?", amount) is not None, "--resource", text, accepted)
    value = float(amount)
    require(1e-4 <= value <= 1 or (value > 1 and value.is_integer()), "--resource", text, accepted)
    return name, value


@dataclass(frozen=True)
class RunResult:
    """Result of a run. Its records are in `out`."""

    out: Path
    complete: bool
    """True if all trials have ended: finished, failed or pruned."""
    failed: int
    """Number of trials of this run that failed."""
    spent: tuple[str, ...] = ()
    """Names of the spent budgets: `time`, `GPU`."""
