"""Planned trials, and the hashes that name a trial and its images.

A name is the hash of everything that determines the named thing. Trials with equal images can share them.
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
"""Trials that share samples: none (`trial`), those with equal images (`inversion`), or all of a sweep (`sweep`)."""

NUMBERS: int = 7
"""Version of the numerical results of a config. Trials of different versions are never equal, shared or compared.

Increment it only in a commit that changes golden numbers, or that changes the default of an existing field (hashes
leave out defaults, so an old hash would silently change its meaning). What changed:

1: everything before 2026-11-28.
3: last bits, because inversions use fewer operations, and because the output of a tapped layer can no longer be
   overwritten by the next layer.
4: last bits, because the distance of BN statistics is computed for all layers at once; hashes that include a precision.
5: `prioritized` memory only: one field fewer, and last bits of its means.
6: last bits of residual networks with fewer than 16 channels, for some batch sizes.
7: discriminators whose config does not set the condition: a projection instead of the class head.
"""
P = TypeVar("P", bound="Prepared | PreparedRefs", covariant=True)


@dataclass(frozen=True)
class Plan:
    """Arm, images per class (0 without a condensed set), seed, config and sharing scope of a trial."""

    arm: str
    ipc: int
    seed: int
    config: TrialConfig
    scope: Scope = "trial"

    @property
    def label(self) -> str:
        """The trial's name in progress displays."""
        return f"{self.group} seed {self.seed}"

    @property
    def group(self) -> str:
        """Arm and IPC, which trials of other seeds have in common."""
        return f"{self.arm}{f' ipc {self.ipc}' if self.ipc else ''}"


@dataclass(frozen=True)
class Lineage:
    """Relation of a trial to other trials of a population search."""

    parent: str = ""
    """Key of the trial whose state and samples this one continues; see `condkd_ray.trial.run.inherit`."""
    pause_after: int | None = None
    """Number of rounds after which the trial stops and leaves its files for trials that continue it."""
    deletes: tuple[str, ...] = ()
    """Keys of stopped trials that no other trial will continue; their files are deleted when this one starts."""


@dataclass(frozen=True)
class PlannedTrial(Generic[P]):
    """A trial that is ready to run. Its `key` is unique and names its files.

    `prepared` is a `Prepared` in the driver. In a job for a worker it is the `PreparedRefs` that represents it.
    """

    key: str
    plan: Plan
    prepared: P
    lineage: Lineage = Lineage()

    @property
    def config(self) -> TrialConfig:
        """All values that determine the trial's numbers."""
        return self.plan.config

    @property
    def label(self) -> str:
        """The trial's name in progress displays."""
        return self.plan.label

    @property
    def scope(self) -> Scope:
        """The scope in effect: `trial` if the trial cannot share its samples, whatever its plan."""
        return self._scope_and_pool_key[0]

    @property
    def pool_key(self) -> str:
        """Key of the trial's samples in the pool, equal for all trials that share them."""
        return self._scope_and_pool_key[1]

    @cached_property
    def _scope_and_pool_key(self) -> tuple[Scope, str]:
        return pool_key(self.plan.scope, self.key, self.config, self.prepared)


def trial_hash(config: TrialConfig, prepared: Prepared, scope: Scope = "trial") -> str:
    """Return the name of a trial: the hash of its config (without file locations), its artifacts' hashes and `NUMBERS`.

    A scope other than the default is also hashed, so that trials with and without sharing can be compared.
    """
    return content_hash(config, _numbered(prepared.hashes) | ({} if scope == "trial" else {"scope": scope}))


def _numbered(digests: dict[str, str]) -> dict[str, str]:
    return digests | {"numbers": str(NUMBERS)}


def can_share(config: TrialConfig) -> bool:
    """Return whether other trials can use the same images: neither the student nor its memory influences them.

    The images of a pipeline are never shared, because its producers run in parallel with their student and end with it.
    """
    makes_any = config.inversion.images_per_round > 0 and config.pipeline is None
    return makes_any and not config.inversion.uses_student and not config.weighing.reads_memory


def production_key(config: TrialConfig, prepared: Prepared | PreparedRefs) -> str:
    """Return a hash that is equal for two trials if and only if they make the same images in the same order.

    Requires a config that `can_share`. The student is not part of the hash. The number of rounds is part of it only if
    a guidance schedule depends on it, and the condensed images only if there is guidance, or if the targets are made
    of them.
    """
    hashes, schedule = prepared.hashes, config.guidance.schedule
    guided = config.guidance.name != "none" or config.targets.needs_condensed
    shaping = [
        *(config.seed, config.data, config.teacher, config.precision, config.compile, config.graphs),
        *(config.targets, config.weighing, config.inversion, config.guidance),
        config.rounds if schedule.largest > schedule.smallest else 0,
        *_with_logits(config),
    ]
    kinds = ("data", "teacher", *(("condensed",) if guided else ()))
    return content_hash(shaping, _numbered({kind: hashes[kind] for kind in kinds}))


def _with_logits(config: TrialConfig) -> list[str]:
    """Return an addition to a key of shared samples that have no logits, as they have in segmentation by default."""
    return [] if config.shares_logits else ["no logits"]


def pool_key(scope: Scope, trial_key: str, config: TrialConfig, prepared: Prepared | PreparedRefs) -> tuple[Scope, str]:
    """Return the effective scope and the pool key of a trial's samples; a trial that cannot share has scope `trial`."""
    if scope == "sweep" and config.inversion.images_per_round > 0 and config.pipeline is None:
        # Samples are stored with one teacher's logits and in one pixel space.
        like = [config.inversion.pixel_space, *_with_logits(config)]
        made_for = _numbered({kind: prepared.hashes[kind] for kind in ("data", "teacher")})
        return scope, f"sweep-{content_hash(like, made_for)}"
    if scope == "inversion" and can_share(config):
        return scope, production_key(config, prepared)
    return "trial", trial_key
