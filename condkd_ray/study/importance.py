"""Importance of the parameters of a search, with its uncertainty.

Source: PED-ANOVA, Watanabe, Bansal & Hutter, IJCAI 2023, in Optuna's implementation, which includes conditional
parameters: how much a parameter's values in the best trials differ from its values in all trials.
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
"""Number of bootstrap resamples."""
TOP, FEWEST = 0.1, 5
"""The best trials are a tenth of all trials, but at least five and at most half of them (our choice).

Fewer trials are not informative.
"""
LEAST = 8
"""Minimum number of trials for which importances are computed (our choice)."""
LEVEL = 0.9
"""Share of the resamples within the range of an importance."""


@dataclass(frozen=True)
class Importance:
    """A parameter's share of the sum of all importances, 0 to 1, and the range of its middle 90 % of resamples.

    For random search, the range contains the expected share for that number of trials in at least 97 % of searches
    (simulated: 12, 30 and 60 trials, 4 parameters, 40 searches each).
    """

    name: str
    share: float
    low: float
    high: float


def importances(trials: Sequence[FrozenTrial], directions: Sequence[Direction], *, seed: int = 0) -> list[Importance]:
    """Return importances in descending order; empty for fewer than `LEAST` complete trials, or if no parameter varies.

    With several objectives, an importance is that for reaching the Pareto front. The ranges are bootstraps over trials.
    `seed`: of the resamples.
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
    """Return the trials of study `name` of the search in `out`. Creates no file.

    `storage`: storage of the study; None: the journal in `out`. Raises `InputError` if the study does not exist.
    """
    place = place_of(storage or None, out)
    require(exists(place, out), "the study", place, "the storage that the search used")
    with quiet():
        return stored_study(open_storage(storage, out), name, f"{place}#{name}").get_trials(deepcopy=False)


def _shares(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> Mapping[str, float]:
    top = min(0.5, max(TOP, FEWEST / len(trials)))
    with quiet(), warnings.catch_warnings():
        # Optuna warns if the best trials are all trials, as in a resample of few; then no parameter is important.
        warnings.simplefilter("ignore")
        study = optuna.create_study(directions=list(directions))
        study.add_trials(trials)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=top))
    return {name: share if math.isfinite(share) else 0.0 for name, share in found.items()}
