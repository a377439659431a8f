"""Whether a difference could be chance: the paired t test over seeds, and Holm's correction for looking often."""

import math
from collections.abc import Sequence

from scipy import stats

from condkd_ray.report.statistics import Difference

Judged = tuple[Difference, float | None]
"""A difference and its p, corrected for all that were made."""


def p_value(one: Difference) -> float | None:
    """Two-sided p of the paired t test that the mean difference is 0; None where there is no interval over seeds.

    It is below 0.05 just if the 95 % interval does not contain 0.
    """
    if one.low is None or one.std is None:
        return None
    return float(2 * stats.t.sf(abs(one.mean) * math.sqrt(one.n) / one.std, one.n - 1))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order of `values`.

    The smallest of m is multiplied by m, the next by m - 1 and so on, none is less than one before it or above 1.
    Below a level, they bound the chance of even one false finding among the m by that level.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def corrected(differences: Sequence[Difference]) -> list[float | None]:
    """The p of each, corrected for all arms that are compared with the same one at the same IPC: one question each."""
    found: list[float | None] = [p_value(one) for one in differences]
    families: dict[tuple[str, int], list[int]] = {}
    for place, one in enumerate(differences):
        if found[place] is not None:
            families.setdefault((one.right, one.ipc), []).append(place)
    for places in families.values():
        for place, p in zip(places, holm([p for i in places if (p := found[i]) is not None]), strict=True):
            found[place] = p
    return found


def judged(differences: Sequence[Difference]) -> list[Judged]:
    """Each with its corrected p."""
    return list(zip(differences, corrected(differences), strict=True))


def told(p: float | None) -> str:
    """As a table shows it."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
