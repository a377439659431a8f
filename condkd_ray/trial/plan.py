"""One trial of an experiment or a search, from its plan to the process that runs it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.identity import Hashed, Scope, pool_key

P = TypeVar("P", bound=Hashed, covariant=True)


@dataclass(frozen=True)
class Plan:
    """What a trial is: its arm, images per class (0 where it has none), seed, config and sharing scope."""

    arm: str
    ipc: int
    seed: int
    config: TrialConfig
    scope: Scope = "trial"

    @property
    def label(self) -> str:
        """As shown while it runs."""
        return f"{self.group} seed {self.seed}"

    @property
    def group(self) -> str:
        """Of its arm and IPC, which trials of other seeds share."""
        return f"{self.arm}{f' ipc {self.ipc}' if self.ipc else ''}"


@dataclass(frozen=True)
class Lineage:
    """A trial's part in a search by a population."""

    heir_of: str = ""
    """Key of the trial whose state and samples it takes over at its start; see `condkd_ray.trial.transfer`."""
    rests: int | None = None
    """The round after which it stops, leaving its files for its heirs."""
    buries: tuple[str, ...] = ()
    """Keys of stopped trials that have no heirs left; their files are deleted as it starts."""


@dataclass(frozen=True)
class PlannedTrial(Generic[P]):
    """A trial that is ready to run. `key` is unique and names its files.

    `prepared` is a `Prepared` in the driver and, sent to a worker, the `PreparedRefs` that stand for one.
    """

    key: str
    plan: Plan
    prepared: P
    lineage: Lineage = Lineage()

    @property
    def config(self) -> TrialConfig:
        """All that determines its numbers."""
        return self.plan.config

    @property
    def label(self) -> str:
        """As shown while it runs."""
        return self.plan.label

    @cached_property
    def place(self) -> tuple[Scope, str]:
        """The scope it really has, and the pool's key of its samples."""
        return pool_key(self.plan.scope, self.key, self.config, self.prepared)
