"""A factor that changes over the rounds of a trial: warm-ups and curricula, of whatever it multiplies."""

import math
from dataclasses import dataclass

from condkd_ray.core.method import Method, require


@dataclass(frozen=True, kw_only=True)
class Schedule(Method):
    """Half a cosine from `start` to `end` over the first `until` of the rounds, then constant. The default is 1.

    PGDI lets the share of its guide images fall by such a cosine in the first half (`peers.md` A.13); that the same
    form serves weights, and warm-ups (`start: 0`), is our choice.
    """

    start: float = 1.0
    end: float = 1.0
    until: float = 0.5
    """Share of the rounds after which `end` is reached."""

    def __post_init__(self) -> None:
        for factor in (self.start, self.end):
            require(0 <= factor < math.inf, "schedule start or end", factor, "a factor >= 0")
        require(0 < self.until <= 1, "schedule until", self.until, "0 < share <= 1")

    @property
    def largest(self) -> float:
        """The largest factor it ever gives."""
        return max(self.start, self.end)

    @property
    def smallest(self) -> float:
        """The smallest factor it ever gives."""
        return min(self.start, self.end)

    def at(self, progress: float) -> float:
        """The factor at `progress`, 0 in the first round and 1 in the last."""
        passed = min(progress / self.until, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * passed))
