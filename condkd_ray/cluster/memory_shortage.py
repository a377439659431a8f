"""What becomes of trials, and what is said, where machines have too little memory and Ray ends processes for it.

Ray's monitor ends the processes that began last once 95 % of a machine's memory are used, whoever uses it. So who began
first goes on, and the others are ended as often as they are started, until memory is free or one of them runs alone.
"""

import logging
import time
from collections.abc import Sequence

from condkd_ray.cluster.lost import SHORT, gigabytes

log = logging.getLogger(__name__)

ASIDE = 3
"""Ends in a row for want of memory, without one more round, after which a trial waits for all others (our choice)."""
PAUSES = (5.0, 30.0, 120.0)
"""Seconds before trials that were set aside are tried again, the first, second and each later time (our choice)."""


class MemoryShortage:
    """Counts ends for want of memory, says once what would help, and keeps trials waiting."""

    def __init__(self) -> None:
        self._ends = 0
        self._largest = 0.0
        self._aside = set[str]()
        self._until = 0.0
        self._pauses = list(PAUSES)
        self._told = False

    def took(self, gigabytes: float) -> None:
        """The process of a trial has held so many GB."""
        self._largest = max(self._largest, gigabytes)

    def ended(self, reason: str) -> None:
        """An attempt has ended for this reason; counted if it was for want of memory."""
        if SHORT in reason:
            self._ends += 1
            self.took(gigabytes(reason))

    @property
    def advice(self) -> str:
        """How much trials take, and what leaves more room."""
        size = f"the process of a trial takes up to {self._largest:.2g} GB; " if self._largest else ""
        return (
            f"{size}fewer trials at once (--max-concurrent, or more --cpus-per-trial), a lower --pool-limit, or fewer "
            "other programs leave more room"
        )

    def set_aside(self, key: str, label: str) -> None:
        """The trial shall run when it is alone, after a while."""
        self._aside.add(key)
        if not self._told:
            self._told = True
            log.info(f"memory is short: processes of trials were ended {self._ends} times; {self.advice}")
        log.info(f"{label} waits until the others have ended, and then runs alone, from its checkpoint")

    def is_aside(self, key: str) -> bool:
        """Whether the trial was set aside, and has not been let go since."""
        return key in self._aside

    def waits(self, key: str, *, alone: bool) -> bool:
        """Whether a trial is to wait, until it is `alone` and for a pause from then on; asked again and again."""
        if key not in self._aside:
            return False
        if not alone:
            self._until = 0.0
        elif not self._until:
            self._until = time.monotonic() + self._pause()
        if not alone or time.monotonic() < self._until:
            return True
        self._aside.discard(key)
        self._until = 0.0
        return False

    def wait_with(self, keys: Sequence[str]) -> bool:
        """Whether one of these was set aside; if so, after the pause."""
        mine = self._aside & set(keys)
        if mine:
            time.sleep(self._pause())
        self._aside -= mine
        return bool(mine)

    def _pause(self) -> float:
        return self._pauses.pop(0) if len(self._pauses) > 1 else self._pauses[0]
