"""GPU time as a budget: what trials have held of GPUs, earlier runs included, and whether that is all they may."""

import time
from collections.abc import Callable

KEPT_EVERY = 5.0
"""Seconds between two times that it is written down; as much is forgotten where the driver is killed."""


class GpuBudget:
    """GPUs times seconds for which trials hold them, used or not.

    `seconds`: how much there is in all; `before`: of it used by earlier runs. `keep` hears now and then, and at the
    end, how much has been used. `clock`: seconds.
    """

    def __init__(
        self,
        seconds: float,
        before: float = 0.0,
        keep: Callable[[float], None] = lambda used: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._used, self._keep, self._clock = seconds, before, keep, clock
        self._held: dict[str, tuple[float, float]] = {}
        self._kept = clock()

    def hold(self, key: str, gpus: float) -> None:
        """Trial `key` has so many GPUs from now on."""
        self.release(key)
        self._held[key] = gpus, self._clock()

    def release(self, key: str) -> None:
        """It has them no more; nothing where it had none."""
        gpus, since = self._held.pop(key, (0.0, 0.0))
        self._used += gpus * (self._clock() - since)

    @property
    def used(self) -> float:
        """GPU seconds so far."""
        now = self._clock()
        return self._used + sum(gpus * (now - since) for gpus, since in self._held.values())

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        used = self.used
        if self._clock() - self._kept >= KEPT_EVERY:
            self._kept = self._clock()
            self._keep(used)
        return used >= self._seconds

    def close(self) -> None:
        """Nobody holds any more."""
        for key in list(self._held):
            self.release(key)
        self._keep(self._used)
