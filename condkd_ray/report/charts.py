"""TensorBoard's custom scalars: for each telling scalar a chart with a line a trial, so that arms stand side by side.

Families are categories. The Scalars tab shows the same figures among all the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tensorboard.plugins.custom_scalar import layout_pb2

# The classes of this module are made at import from a descriptor, which no type checker sees.
_LAYOUT: Any = layout_pb2

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


def telling(tags: Iterable[str]) -> set[str]:
    """Those of `family/term` that get a chart."""
    return {tag for tag in tags if _tells(*tag.partition("/"))}


def layout(tags: Iterable[str]) -> Any:
    """The Layout of the charts of `tags`; every chart's one expression is met by one of them, and by no other."""
    shown = sorted(telling(tags))
    categories = []
    for family in FAMILIES:
        members = [tag for tag in shown if tag.startswith(f"{family}/")]
        charts = [
            _LAYOUT.Chart(title=tag, multiline=_LAYOUT.MultilineChartContent(tag=[f"^{re.escape(tag)}$"]))
            for tag in members
        ]
        if charts:
            categories.append(_LAYOUT.Category(title=family, chart=charts))
    return _LAYOUT.Layout(category=categories)


def _tells(family: str, slash: str, term: str) -> bool:
    return bool(slash) and family in FAMILIES and (not FAMILIES[family] or term in FAMILIES[family])
