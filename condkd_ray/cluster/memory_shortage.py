"""Handling of trials whose processes Ray ends because a machine runs short of memory.

Once 95 % of a machine's memory is used, by any program (Ray's default, `RAY_memory_usage_threshold`), Ray's monitor
ends the processes that started last. So the oldest trials continue, and newer ones are ended as often as they start,
until memory is free or a single trial is left.
"""

import logging
import time
from collections.abc import Sequence

from condkd_ray.cluster.lost import SHORT, gigabytes

log = logging.getLogger(__name__)

MAX_SHORTAGES = 3
"""After Ray has ended a trial this many times in a row for lack of memory, without a new round in between, the trial
waits for all others (our choice)."""
PAUSES = (5.0, 30.0, 120.0)
"""Seconds of the first, the second, and each later pause before trials that were set aside are tried again.

All trials of a sweep share the count of pauses. The values are our choice.
"""


class MemoryShortage:
    """Counts how often Ray has ended trials for lack of memory, logs advice once, and makes trials wait."""

    def __init__(self) -> None:
        self._ends = 0
        self._largest = 0.0
        self._aside = set[str]()
        self._until = 0.0
        self._pauses = list(PAUSES)
        self._advised = False

    def record(self, size: float) -> None:
        """Record the memory that the process of a trial holds, in GB."""
        self._largest = max(self._largest, size)

    def count_end(self, reason: str) -> None:
        """Count an ended attempt if its `reason` is a lack of memory."""
        if SHORT in reason:
            self._ends += 1
            self.record(gigabytes(reason))

    @property
    def advice(self) -> str:
        """Text with the largest memory of a trial, if known, and with the settings that leave more room."""
        size = f"the process of a trial takes up to {self._largest:.2f} GB; " if self._largest else ""
        return (
            f"{size}fewer trials at once (--max-concurrent, or more --cpus-per-trial), a lower --pool-limit, or fewer "
            "other programs leave more room"
        )

    def set_aside(self, key: str, label: str) -> None:
        """Make the trial wait until it can run alone; log this and, the first time, the advice. `label`: its name."""
        self._aside.add(key)
        if not self._advised:
            self._advised = True
            log.info(f"memory is short: processes of trials were ended {self._ends} times; {self.advice}")
        log.info(f"{label} waits until the others have ended, and then runs alone, from its checkpoint")

    def is_aside(self, key: str) -> bool:
        """Return whether the trial is set aside and has not been released yet."""
        return key in self._aside

    def must_wait(self, key: str, *, alone: bool) -> bool:
        """Return whether a trial must still wait, for the others to end and then for a pause; if not, release it.

        `alone`: whether no other trial runs. The driver calls this again and again. False for a trial not set aside.
        """
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

    def release(self, keys: Sequence[str]) -> bool:
        """Release the trials among `keys` that were set aside, after a pause. Return whether there were any."""
        mine = self._aside & set(keys)
        if mine:
            time.sleep(self._pause())
        self._aside -= mine
        return bool(mine)

    def _pause(self) -> float:
        return self._pauses.pop(0) if len(self._pauses) > 1 else self._pauses[0]
