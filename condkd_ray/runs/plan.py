"""The plans of an experiment: checked, their seeds spread over teachers, in the scope of sharing that is asked for."""

import dataclasses
from collections.abc import Iterable, Sequence

from condkd_ray.core.method import require
from condkd_ray.report.statistics import Baseline
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.plan import Plan, Scope


def check_plans(planned: Sequence[Plan]) -> None:
    """Raise `InputError` where none is planned, one twice, or one that cannot share is to."""
    require(bool(planned), "number of trials", 0, "at least one arm, IPC and seed")
    first: dict[tuple[TrialConfig, Scope], Plan] = {}
    for plan in planned:
        twin = first.setdefault((plan.config, plan.scope), plan)
        same = f"{twin.label} and {plan.label}"
        require(twin is plan, "one trial, planned twice,", same, "arms, IPCs and seeds that differ")
        alone = plan.scope == "trial" or plan.config.pipeline is None
        require(alone, "--share with --producers", plan.scope, "trial: what a trial's own producers make ends with it")


def spread(plans: Iterable[Plan], seeds: Sequence[int], teachers: int) -> list[Plan]:
    """The plans with their seeds spread over so many teachers: the i-th of `seeds` has teacher i mod `teachers`.

    Teacher k is trained with the seed k above that of the plan's own teacher config, 0 by default; the seed of the data
    split is the same for all. Raises `InputError` where that cannot be: more teachers than seeds, a teacher that is
    loaded and not trained, plans of other seeds.
    """
    found, different = list(plans), list(dict.fromkeys(seeds))
    accepted = f"1 to {len(different)}, the number of --seeds"
    require(1 <= teachers <= max(1, len(different)), "--teachers", teachers, accepted)
    if teachers == 1:
        return found
    loaded = [plan.config.teacher.weights for plan in found if plan.config.teacher.weights is not None]
    require(not loaded, f"--teachers with --teacher-weights {next(iter(loaded), '')}", teachers, "1, that of the file")
    planned = {plan.seed for plan in found}
    require(planned == set(different), "--teachers", teachers, "1: this experiment does not run each of --seeds")
    return [_under(plan, different.index(plan.seed) % teachers) for plan in found]


def _under(plan: Plan, teacher: int) -> Plan:
    own = plan.config.teacher
    moved = dataclasses.replace(own, seed=own.seed + teacher)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, teacher=moved))


def scoped(plan: Plan, scope: Scope) -> Plan:
    """The plan in the scope of the flags, if it has none of its own."""
    if plan.scope != "trial" or scope == "trial":
        return plan
    return dataclasses.replace(plan, arm=_arm(plan.arm, scope), scope=scope)


def _arm(arm: str, scope: Scope) -> str:
    """Drawing from others' images makes another arm of it."""
    return f"{arm} (sweep's pool)" if scope == "sweep" else arm


def scoped_baseline(baseline: Baseline, plans: Sequence[Plan], scope: Scope) -> Baseline:
    """What each arm of the scope is compared with: the same as without it, in the same scope."""
    own = {plan.arm: baseline if isinstance(baseline, str) else baseline.get(plan.arm, "none") for plan in plans}
    scoped = {_arm(arm, scope): _arm(base, scope) for arm, base in own.items()}
    return baseline if scope != "sweep" else own | scoped
