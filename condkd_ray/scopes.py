"""An experiment's trials in another scope of sharing than they were planned in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from condkd_ray.bookkeeping import Plan
from condkd_ray.identity import Scope
from condkd_ray.report.statistics import Baseline


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
