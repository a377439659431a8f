"""Who ends a trial early: Optuna's pruners. They decide by what stands in the study, which outlives its driver."""

from __future__ import annotations

from typing import Literal

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from condkd_ray.core.method import require
from condkd_ray.study.objective import Objective

Pruner = Literal["none", "asha", "hyperband", "median"]
"""Nobody; asynchronous successive halving; several brackets of it; below the median of earlier trials at that round."""
REDUCTION = 3
"""One in so many goes on at each rung."""


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
