"""The best of a search once more, with seeds that it has not seen: what it found, or only chose."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from condkd_ray import report
from condkd_ray.commands.console import bar
from condkd_ray.core.method import require
from condkd_ray.runs import experiment
from condkd_ray.runs.experiment import Flags
from condkd_ray.runs.options import RunFlags
from condkd_ray.runs.plan import Plan
from condkd_ray.runs.search import SearchFlags, study_of
from condkd_ray.study import Objective
from condkd_ray.study.space import default

log = logging.getLogger(__name__)


def confirm(tree: dict[str, Any], flags: SearchFlags, *, best: int, seeds: Sequence[int]) -> int:
    """Run the best trials of a finished search again with other seeds, beside the space's default, and compare these.

    Results lie in `confirmed` below the search's. The exit code: as an experiment's.
    """
    seen = default(tree).seed
    require(best >= 1, "--best", best, "an integer >= 1")
    require(seen not in seeds and len(set(seeds)) == len(seeds) > 0, "--new-seeds", seeds, f"seeds other than {seen}")
    study = study_of(tree, flags, Objective(flags.objective))
    arms = {"default": default(tree)}
    arms |= {f"trial {trial.number}": study.proposal(trial).config for trial in study.ranked[:best]}
    twins = {config: arm for arm, config in reversed(arms.items())}
    plans = [
        Plan(arm, getattr(config.condensation, "ipc", 0), seed, dataclasses.replace(config, seed=seed), flags.share)
        for config, arm in reversed(twins.items())
        for seed in seeds
    ]
    kept = {field.name: getattr(flags, field.name) for field in dataclasses.fields(RunFlags)}
    apart = {"out": flags.out / "confirmed", "storage": flags.storage and _below(flags.storage, "confirmed")}
    again = Flags(**kept | apart)
    question = f"Are the best {best} trials of the search better than the default with new seeds?"
    code = experiment.run("confirm", question, plans, again, baseline="default")
    with bar("page of the search"):
        report.build(flags.out, tensorboard=False)
    log.info(f"the page of the search now shows what came of them: {flags.out / 'report.html'}")
    return code


def _below(storage: str, name: str) -> str:
    """A folder in a storage, whose address may have options behind a question mark."""
    path, mark, options = storage.partition("?")
    return f"{path}/{name}{mark}{options}"
