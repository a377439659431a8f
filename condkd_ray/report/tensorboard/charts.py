"""TensorBoard's custom scalars: arms side by side.

First, once the trials have ended, charts with a line and a band an arm; then for each telling scalar one with a line a
trial, families as categories. The Scalars tab shows the same figures among all the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tensorboard.plugins.custom_scalar import layout_pb2

from condkd_ray.report.tensorboard.spread import METRICS, PARTS

# The classes of this module are made at import from a descriptor, which no type checker sees.
_LAYOUT: Any = layout_pb2

ARMS = "arms, over their seeds"
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "student": ("test_accuracy", "val_accuracy"),
        "proxy": ("agreement", "kl"),
        "kd": (),
        "inversion": (),
        "guidance": (),
        "diagnosis": (),
        "memory": (),
    }
)
"""In this order; of each family the named terms, or all there are: losses, and where the synthetic images lie."""
BESIDE: Mapping[str, str] = MappingProxyType({"guidance/perfect_accuracy": "guidance/accuracy"})
"""Scalars that stand in the chart of another, where there is that one: they are what it is to be compared with."""


def telling(tags: Iterable[str]) -> set[str]:
    """Those of `family/term` that get a chart."""
    return {tag for tag in tags if _tells(*tag.partition("/"))}


def layout(tags: Iterable[str], spread: Iterable[str] = ()) -> Any:
    """The Layout of the charts of `tags`: each expression is met by one of them, and a chart has one but for `BESIDE`.

    `spread`: metrics of which there are means and ranges over the seeds of an arm; their charts come first.
    """
    shown = sorted(telling(tags))
    # TensorBoard shows charts with bands from the last to the first, those with lines as they come.
    charts = {ARMS: [_over_seeds(name) for name in reversed(METRICS) if name in set(spread)]}
    for family in FAMILIES:
        own = [tag for tag in shown if tag.startswith(f"{family}/") and BESIDE.get(tag) not in shown]
        charts[family] = [_over_trials([tag, *(t for t in shown if BESIDE.get(t) == tag)]) for tag in own]
    return _LAYOUT.Layout(
        category=[_LAYOUT.Category(title=title, chart=members) for title, members in charts.items() if members]
    )


def _over_trials(tags: Sequence[str]) -> Any:
    expressions = [f"^{re.escape(tag)}$" for tag in tags]
    return _LAYOUT.Chart(title=tags[0], multiline=_LAYOUT.MultilineChartContent(tag=expressions))


def _over_seeds(name: str) -> Any:
    mean, lowest, highest = (f"{part}/{name}" for part in PARTS)
    series = _LAYOUT.MarginChartContent.Series(value=mean, lower=lowest, upper=highest)
    return _LAYOUT.Chart(title=f"{name}, mean and range", margin=_LAYOUT.MarginChartContent(series=[series]))


def _tells(family: str, slash: str, term: str) -> bool:
    return bool(slash) and family in FAMILIES and (not FAMILIES[family] or term in FAMILIES[family])
