"""Where trials run, what each takes of the cluster, and how much is run. No number in a table depends on these."""

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
    """Where the files of a run lie, what its trials take of a cluster, and how much of it is run.

    The commands have a flag for each field. Texts are parsed once, by `check` at the latest.
    """

    out: Path = Path("runs/experiment")
    """The same folder again continues: what is finished stays."""
    storage: str | None = None
    """Where trials keep checkpoints and chunks until they end, this experiment's alone: a folder that all nodes see, or
    `s3://bucket/prefix`; `--out` if not given."""
    cache: Path | None = None
    """Teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    address: str | None = None
    """Of a Ray cluster; RAY_ADDRESS if not given, else a private one on this machine."""
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    cpus_per_producer: float = 1.0
    gpus_per_producer: float = 0.0
    resource: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=AMOUNT of a custom resource that a trial needs, so that it runs only on nodes that offer it; repeatable."""
    max_concurrent: int | None = None
    """Trials at once, at most; as many as fit if not given."""
    time_budget: str | None = None
    """Such as 30m, 2h or 1h30m from the start of the command. When it is spent no trial starts, and each one that runs
    stops after its round, with a checkpoint: the same command goes on from there."""
    share: Scope = "trial"
    """Which trials share synthetic images: `trial`, none; `inversion`, those whose images are equal, which are then
    made once, with equal numbers; `sweep`, all of one teacher draw from all, which makes arms of their own."""
    pool_limit: str | None = None
    """Such as 500MB or 4GB of shared memory a node for synthetic images; what is beyond it is read from disk, and told
    of. 60 % of the smallest node's object store if not given."""
    device_pool_limit: str | None = None
    """Such as 500MB or 4GB of each trial's GPU for its synthetic images; what is beyond it is sent from the host's
    memory when it is drawn. A quarter of the trial's part of the GPU if not given."""
    verbose: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also tell each round with its losses, where each trial runs, and what Ray and its processes print. In another
    program the level of the logger `condkd_ray` decides."""
    fresh: bool = False
    """Move what `--out` holds aside, delete what trials have left in a `--storage` apart, and begin anew."""

    @cached_property
    def place(self) -> Location:
        """Where trials keep their files. Raises `InputError`."""
        return locate(str(self.out) if self.storage is None else self.storage)

    @property
    def place_flag(self) -> str:
        """The flag that names `place`."""
        return "--out" if self.storage is None else "--storage"

    @cached_property
    def budget_seconds(self) -> float:
        """`time_budget` in seconds; infinite where there is none. Raises `InputError`."""
        return math.inf if self.time_budget is None else parse_duration(self.time_budget, "--time-budget")

    @property
    def per_producer(self) -> Allowance:
        """What each producer of a trial gets."""
        return Allowance(self.cpus_per_producer, self.gpus_per_producer)

    @cached_property
    def resources(self) -> dict[str, float]:
        """Amounts of custom resources by name. Raises `InputError`."""
        pairs = [_resource(text) for text in self.resource]
        require(len(dict(pairs)) == len(pairs), "--resource", " ".join(self.resource), "each NAME once")
        return dict(pairs)

    @cached_property
    def pool_bytes(self) -> int | None:
        """`pool_limit` in bytes; None where there is none. Raises `InputError`."""
        return None if self.pool_limit is None else parse_size(self.pool_limit, "--pool-limit")

    @cached_property
    def device_pool_bytes(self) -> int | None:
        """`device_pool_limit` in bytes; None where there is none. Raises `InputError`."""
        return None if self.device_pool_limit is None else parse_size(self.device_pool_limit, FLAG)

    @property
    def per_trial(self) -> Allowance:
        """What each trial gets, beside its producers."""
        return Allowance(self.cpus_per_trial, self.gpus_per_trial)

    def check(self) -> None:
        """Parse all texts. Raises `InputError` for options that cannot be."""
        most = self.max_concurrent
        require(most is None or most >= 1, "--max-concurrent", most, "an integer >= 1")
        _ = self.place, self.budget_seconds, self.resources, self.pool_bytes, self.device_pool_bytes
        check_on_gpu(self.device_pool_limit, self.gpus_per_trial > 0, "none, or --gpus-per-trial above 0")

    def of_cluster(self, deadline: float) -> "ClusterOptions":
        """The options of a sweep or a search that ends at `deadline`. Raises `InputError`."""
        # Here, as flags are made of these options, and it imports PyTorch.
        from condkd_ray.cluster.options import ClusterOptions

        return ClusterOptions(
            folder=self.out,
            storage=self.place,
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
    accepted = "NAME=AMOUNT with an amount up to 1 or whole, such as big_memory=1"
    require(name not in ("CPU", "GPU"), "--resource", text, "--cpus-per-trial and --gpus-per-trial for these")
    require(bool(name) and re.fullmatch(r"\d+(\.\d+)?", amount) is not None, "--resource", text, accepted)
    value = float(amount)
    require(0 < value <= 1 or value == int(value) > 1, "--resource", text, accepted)
    return name, value


@dataclass(frozen=True)
class RunResult:
    """What came of a run. Its records and tables lie in `out`."""

    out: Path
    complete: bool
    """Whether all trials have come to an end: finished, failed or pruned."""
    failed: int
    """Trials of this run that failed."""
    spent: tuple[str, ...] = ()
    """Names of the budgets that are spent: `time`, `GPU`."""
