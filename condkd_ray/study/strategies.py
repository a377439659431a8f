"""Construction of Optuna's samplers and pruners, and checks that they support a given space and objective."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from condkd_ray.core.method import require
from condkd_ray.core.rng import derive_seed
from condkd_ray.study.choices import Pruner, Sampler
from condkd_ray.study.objective import Objective
from condkd_ray.study.space import Open, conditional, leaves
from condkd_ray.study.storage import quiet

FIXED = ("gp", "qmc", "grid")
"""Samplers that require the same open leaves in all trials."""
CONSTRAINED = ("tpe", "gp")
"""Samplers that use constraints."""
IN_ORDER = ("qmc", "grid")
"""Samplers that follow a fixed sequence and store their position in the study."""
REDUCTION = 3
"""Reduction factor of halving: one in three trials continues at each rung."""


def check_sampler(name: Sampler, tree: dict[str, Any], *, constrained: bool = False) -> None:
    """Raise `InputError` if a sampler does not support the space or, if `constrained`, constraints."""
    accepted = f"{', '.join(CONSTRAINED)}; the others ignore it"
    require(not constrained or name in CONSTRAINED, "--sampler", f"{name} with --constraint", accepted)
    use = f"{name} for a space in which a choice opens leaves of its own"
    require(name not in FIXED or not conditional(tree), "--sampler", use, "tpe, random")
    if name == "grid":
        endless = [path for path, leaf in leaves(tree).items() if leaf.kind in ("uniform", "log_uniform")]
        accepted = "!choice and !int alone, or another sampler"
        require(not endless, "--sampler", f"grid for a space with a real number, {', '.join(endless)}", accepted)


def make_sampler(name: Sampler, tree: dict[str, Any], *, seed: int, number: int) -> BaseSampler:
    """Return the sampler of trial `number` of a study.

    Each trial has a new sampler, seeded with the trial's number, so that a continued search makes the proposals that it
    would have made without interruption; a single sampler would restart its random sequence. `qmc` and `grid` use one
    seed for all trials.
    """
    own = derive_seed(seed, f"sampler/{number}") % 2**32
    with quiet():
        if name == "tpe":
            # With groups, the sampler models leaves jointly if they are open in the same trials.
            return TPESampler(seed=own, multivariate=True, group=True, constant_liar=True)
        if name == "gp":
            return GPSampler(seed=own, warn_independent_sampling=False)
        if name == "random":
            return RandomSampler(seed=own)
        if name == "qmc":
            return QMCSampler(
                scramble=True,
                seed=seed,
                independent_sampler=RandomSampler(seed=own),
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
        return _Grid({path: _listed(leaf) for path, leaf in leaves(tree).items()}, seed, own)


class _Grid(GridSampler):
    """Optuna's grid sampler, changed so that it never stops the study and accepts enqueued points.

    A full grid is detected by its repeated trials. The leaves that a point does not set are drawn at random, seeded by
    `own`; Optuna's class raises an error for such a point.
    """

    def __init__(self, grid: dict[str, list[Any]], seed: int, own: int) -> None:
        super().__init__(grid, seed=seed)
        self._points = RandomSampler(seed=own)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of the trial's grid cell; for an enqueued point a random one."""
        of_grid = "grid_id" in trial.system_attrs
        sampler = super() if of_grid else self._points
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Do nothing: Optuna's method stops the study once the grid is full."""


def _listed(leaf: Open) -> list[Any]:
    if leaf.kind == "int":
        return list(range(leaf.values[0], leaf.values[1] + 1))
    return leaf.examples


def check_pruner(name: Pruner, objective: Objective) -> None:
    """Raise `InputError` for a pruner together with several objectives, which Optuna's pruners do not support."""
    several = f"{name} for the objectives {' '.join(objective.names)}"
    require(name == "none" or not objective.several, "--pruner", several, "none, or one objective")


def make_pruner(name: Pruner, *, least: int, most: int) -> BasePruner:
    """Return the pruner for trials of at most `most` rounds; it prunes no trial before `least` rounds."""
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=least, reduction_factor=REDUCTION)
    if name == "hyperband":
        return HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=REDUCTION)
    if name == "median":
        return MedianPruner(n_warmup_steps=least)
    return NopPruner()
