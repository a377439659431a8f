"""The best of a search once more, with seeds that it has not seen: what it found, or only chose."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from condkd_ray.core.method import require
from condkd_ray.core.view import SILENT, View
from condkd_ray.runs import experiment
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.search import SearchSpec, study_of
from condkd_ray.study.space import default
from condkd_ray.trial.plan import Plan


def confirm(
    tree: dict[str, Any], spec: SearchSpec, *, best: int, seeds: Sequence[int], view: View = SILENT
) -> RunResult:
    """Run the best trials of a finished search again with other seeds, beside the space's default, and compare these.

    Results lie in `confirmed` below the search's.
    """
    seen = default(tree).seed
    require(best >= 1, "--best", best, "an integer >= 1")
    require(seen not in seeds and len(set(seeds)) == len(seeds) > 0, "--new-seeds", seeds, f"seeds other than {seen}")
    study = study_of(tree, spec)
    arms = {"default": default(tree)}
    arms |= {f"trial {trial.number}": study.proposal(trial).config for trial in study.ranked[:best]}
    twins = {config: arm for arm, config in reversed(arms.items())}
    plans = [
        Plan(arm, config.ipc, seed, dataclasses.replace(config, seed=seed), spec.share)
        for config, arm in reversed(twins.items())
        for seed in seeds
    ]
    kept = {field.name: getattr(spec, field.name) for field in dataclasses.fields(Options)}
    apart = {"out": spec.out / "confirmed", "storage": spec.storage and _below(spec.storage, "confirmed")}
    question = f"Are the best {best} trials of the search better than the default with new seeds?"
    return experiment.run("confirm", question, plans, Options(**kept | apart), baseline="default", view=view)


def _below(storage: str, name: str) -> str:
    """A folder in a storage, whose address may have options behind a question mark."""
    path, mark, options = storage.partition("?")
    return f"{path}/{name}{mark}{options}"
