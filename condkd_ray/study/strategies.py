"""Optuna's samplers, which propose trials, and pruners, which end them early; each asked only for what it can do."""

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
"""Those that need the same open leaves in every trial."""
CONSTRAINED = ("tpe", "gp")
"""Those that learn from what is beyond a limit."""
IN_ORDER = ("qmc", "grid")
"""Those that go through an order of their own, and keep in the study how far they are."""
REDUCTION = 3
"""One in so many goes on at each rung."""


def check_sampler(name: Sampler, tree: dict[str, Any], *, constrained: bool = False) -> None:
    """Raise `InputError` where a sampler cannot do what the space, or a constraint, asks for."""
    accepted = f"{', '.join(CONSTRAINED)}; the others take no notice of it"
    require(not constrained or name in CONSTRAINED, "--sampler", f"{name} with --constraint", accepted)
    asked = f"{name} for a space in which a choice opens leaves of its own"
    require(name not in FIXED or not conditional(tree), "--sampler", asked, "tpe, random")
    if name == "grid":
        endless = [path for path, leaf in leaves(tree).items() if leaf.kind in ("uniform", "log_uniform")]
        accepted = "!choice and !int alone, or another sampler"
        require(not endless, "--sampler", f"grid for a space with a real number, {', '.join(endless)}", accepted)


def make_sampler(name: Sampler, tree: dict[str, Any], *, seed: int, number: int) -> BaseSampler:
    """The sampler of trial `number` of a study.

    A new one for each, seeded with its number: a search that is continued then proposes what it would have proposed,
    where one sampler of the same seed would begin its random start again. A sequence has one seed for all.
    """
    own = derive_seed(seed, f"sampler/{number}") % 2**32
    with quiet():
        if name == "tpe":
            # Grouped, it models jointly the leaves that are open together.
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
    """Without its stopping of Optuna's own loop, which nobody runs here: a full grid is found out by its repeats.

    What a point leaves open is drawn, by a generator that is seeded with `own`; Optuna refuses it.
    """

    def __init__(self, grid: dict[str, list[Any]], seed: int, own: int) -> None:
        super().__init__(grid, seed=seed)
        self._points = RandomSampler(seed=own)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of the trial's place in the grid, or of a point any one."""
        of_grid = "grid_id" in trial.system_attrs
        sampler = super() if of_grid else self._points
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Nothing."""


def _listed(leaf: Open) -> list[Any]:
    if leaf.kind == "int":
        return list(range(leaf.values[0], leaf.values[1] + 1))
    return leaf.examples


def check_pruner(name: Pruner, objective: Objective) -> None:
    """Raise `InputError` where it cannot judge by several objectives."""
    several = f"{name} for the objectives {' '.join(objective.names)}"
    require(name == "none" or not objective.several, "--pruner", several, "none, or one objective")


def make_pruner(name: Pruner, *, least: int, most: int) -> BasePruner:
    """The pruner, for trials of `most` rounds that are first judged after `least` of them."""
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=least, reduction_factor=REDUCTION)
    if name == "hyperband":
        return HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=REDUCTION)
    if name == "median":
        return MedianPruner(n_warmup_steps=least)
    return NopPruner()
