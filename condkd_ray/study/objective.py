"""What a search may look at, round by round and at a trial's end. Test accuracy is never among it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from condkd_ray.core.method import Metrics, require

Direction = Literal["maximize", "minimize"]
QUALITY: dict[str, Direction] = {
    "proxy/agreement": "maximize",
    "proxy/kl": "minimize",
    "student/val_accuracy": "maximize",
}
"""How good a student is, on images that are not the test images."""
COST: dict[str, Direction] = {
    "time/wall_seconds": "minimize",
    "time/cpu_seconds": "minimize",
    "memory/bytes": "minimize",
}
"""What a trial takes: its seconds, all rounds together, and the bytes its memory holds at the end."""
TEST = "choosing by test accuracy makes the number that is then reported too good"


@dataclass(frozen=True)
class Objective:
    """One name or several, each with its direction; the first is the quality by which trials are stopped early."""

    names: tuple[str, ...] = ("proxy/agreement",)

    def __post_init__(self) -> None:
        first = self.names[0] if self.names else None
        tested = [name for name in self.names if "test" in name]
        require(not tested, "objective", " ".join(tested), f"{_listed(QUALITY)}; {TEST}")
        require(first in QUALITY, "the first objective", first, _listed(QUALITY))
        for name in self.names[1:]:
            require(name in QUALITY or name in COST, "objective", name, _listed(QUALITY | COST))
        require(len(set(self.names)) == len(self.names), "objective", " ".join(self.names), "each name once")

    @property
    def directions(self) -> list[Direction]:
        """Of each name."""
        return [(QUALITY | COST)[name] for name in self.names]

    @property
    def several(self) -> bool:
        """Whether there is a front rather than a best trial."""
        return len(self.names) > 1

    def now(self, metrics: Metrics) -> float | None:
        """The quality after a round; None where the student was not measured in it."""
        return metrics.get(self.names[0])

    def values(self, history: Sequence[Metrics]) -> list[float]:
        """Of a trial with these rounds; NaN for what none of them tells."""
        return [at_end(name, history) for name in self.names]


def at_end(name: str, history: Sequence[Metrics]) -> float:
    """What a trial of these rounds has come to: seconds are summed, of all else the last counts; NaN if never told."""
    told = [metrics[name] for metrics in history if name in metrics]
    if not told:
        return math.nan
    return sum(told) if name.startswith("time/") else told[-1]


def _listed(names: dict[str, Direction]) -> str:
    return ", ".join(f"{name} ({direction[:3]}.)" for name, direction in names.items())
