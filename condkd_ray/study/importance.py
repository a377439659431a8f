"""Which parameters of a search mattered, and how sure that is.

Source: PED-ANOVA, Watanabe, Bansal & Hutter, IJCAI 2023, as Optuna has it, conditional parameters included: how much
the best trials' values of a parameter differ from all trials' values of it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from condkd_ray.core.method import require
from condkd_ray.study.objective import Direction
from condkd_ray.study.storage import exists, open_storage, place_of, quiet, stored_study
from condkd_ray.study.study import REPEAT

RESAMPLES = 100
TOP, FEWEST = 0.1, 5
"""A tenth of the trials count as the best, but at least five, and at most half: fewer say little (our choice)."""
LEAST = 8
"""Of fewer trials no importance is told (our choice)."""
LEVEL = 0.9


@dataclass(frozen=True)
class Importance:
    """Share of a parameter in what all explain together, 0 to 1, with the range of the middle 90 % of resamples.

    Where random trials are searched the range covers the share that is expected of so many trials in at least 97 % of
    searches (simulated: 12, 30 and 60 trials, 4 parameters, 40 searches each).
    """

    name: str
    share: float
    low: float
    high: float


def importances(trials: Sequence[FrozenTrial], directions: Sequence[Direction], *, seed: int = 0) -> list[Importance]:
    """By falling share; empty with fewer than `LEAST` complete trials, or where none varies.

    With several objectives: importance for reaching the front. The spread is a bootstrap over trials, resampled with
    replacement.
    """
    complete = [one for one in trials if one.state == TrialState.COMPLETE and REPEAT not in one.user_attrs]
    if len(complete) < LEAST:
        return []
    whole = _shares(complete, directions)
    rng, size = np.random.default_rng(seed), len(complete)
    draws = [_shares([complete[i] for i in rng.integers(size, size=size)], directions) for _ in range(RESAMPLES)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    found = []
    for name, share in sorted(whole.items(), key=lambda pair: (-pair[1], pair[0])):
        low, high = np.quantile([draw.get(name, 0.0) for draw in draws], ends)
        found.append(Importance(name, share, float(low), float(high)))
    return found


def stored_trials(out: Path, name: str, storage: str | None) -> list[FrozenTrial]:
    """Of the study of a search whose folder is `out`. Raises `InputError` where there is none; makes none."""
    told = place_of(storage or None, out)
    require(exists(told, out), "the study", told, "where the search has kept it")
    with quiet():
        return stored_study(open_storage(storage, out), name, f"{told}#{name}").get_trials(deepcopy=False)


def _shares(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> Mapping[str, float]:
    top = min(0.5, max(TOP, FEWEST / len(trials)))
    with quiet(), warnings.catch_warnings():
        # It warns where the best and all are the same trials, as in a resample of few: nothing is important then.
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=list(directions))
        study.add_trials(trials)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
    return {name: share if math.isfinite(share) else 0.0 for name, share in found.items()}
