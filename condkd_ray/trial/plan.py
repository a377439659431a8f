"""A trial from its plan to the process that runs it, and what it and its images are named by.

A name is the hash of all that determines what is named. Trials of equal images can share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from condkd_ray.core.config import content_hash

if TYPE_CHECKING:
    from condkd_ray.trial.config import Prepared, TrialConfig
    from condkd_ray.trial.packing import PreparedRefs

Scope = Literal["trial", "inversion", "sweep"]
"""Of the pool's samples: each trial has its own; trials whose images are equal make them once; all draw from all."""

NUMBERS: int = 7
"""Version of the numbers that a config gives: trials of different versions are never equal, shared or compared.

It is raised only in a commit that moves golden numbers, or that changes the default of an existing field (a hash leaves
defaults out, so an old hash would silently get a new meaning). 1 is all before 2026-11-28; 3 differs from 2 in the
last bits, as inversions take fewer operations, and where a tapped layer's output was written into by the next; 4 from 3
in the last bits again, as the distance of BN statistics is of all layers at once, and in what names a precision; 5 from
4 under `prioritized` alone, which has a field less, and there in last bits of its means; 6 from 5 in last bits of
residual networks with fewer than 16 channels, for some sizes of a batch; 7 from 6 under a discriminator that does not
say its condition, which is a projection now and was the class head.
"""
P = TypeVar("P", bound="Prepared | PreparedRefs", covariant=True)


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
    """Key of the trial whose state and samples it takes over at its start; see `condkd_ray.trial.run.inherit`."""
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


def trial_hash(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> str:
    """The name of a trial: hash of its config (less where files lie), what it was prepared from, and `NUMBERS`.

    And of its scope where that is another than the default, so that what sharing costs or spares can be compared.
    """
    return content_hash(config, _numbered(prepared.hashes) | ({} if scope == "trial" else {"scope": scope}))


def _numbered(digests: dict[str, str]) -> dict[str, str]:
    return digests | {"numbers": str(NUMBERS)}


def can_share(config: TrialConfig) -> bool:
    """Whether other trials can have the same images: nothing of the student or its memory shapes them.

    Those of a pipeline are its own: its producers run beside their learner, and end with it.
    """
    makes_any = config.inversion.images_per_round > 0 and config.pipeline is None
    return makes_any and not config.inversion.uses_student and not config.weighing.reads_memory


def production_key(config: TrialConfig, prepared: Prepared | PreparedRefs) -> str:
    """Equal for two trials just if they make the same images in the same order. For a config that `can_share`.

    Neither the student nor the number of rounds is in it, unless a schedule stretches over these, nor the condensed
    images, unless they guide.
    """
    hashes, schedule = prepared.hashes, config.guidance.schedule
    guided = config.guidance.name != "none"
    shaping = [
        *(config.seed, config.data, config.teacher, config.precision, config.compile, config.graphs),
        *(config.targets, config.weighing, config.inversion, config.guidance),
        config.rounds if schedule.largest > schedule.smallest else 0,
    ]
    kinds = ("data", "teacher", *(("condensed",) if guided else ()))
    return content_hash(shaping, _numbered({kind: hashes[kind] for kind in kinds}))


def pool_key(scope: Scope, trial_key: str, config: TrialConfig, prepared: Prepared | PreparedRefs) -> tuple[Scope, str]:
    """The scope a trial really has, and the key of its samples: where it cannot share, it has its own."""
    if scope == "sweep" and config.inversion.images_per_round > 0 and config.pipeline is None:
        # Samples come with a teacher's logits and in one pixel space.
        like = [config.inversion.pixel_space]
        made_for = _numbered({kind: prepared.hashes[kind] for kind in ("data", "teacher")})
        return scope, f"sweep-{content_hash(like, made_for)}"
    if scope == "inversion" and can_share(config):
        return scope, production_key(config, prepared)
    return "trial", trial_key
