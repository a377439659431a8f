"""How long the trials of this process have waited for Ray: its pool, its driver, the time between two trials."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds waited since it was last read. A process runs one trial at a time, so one watch is enough."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._idle_since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time within the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - begin

    @contextmanager
    def trial(self) -> Iterator[None]:
        """A trial: what was counted before is forgotten, and the time since the last trial of this process is counted.

        Nothing for the first one: its process was just started.
        """
        now = time.perf_counter()
        self._seconds = 0.0 if self._idle_since is None else now - self._idle_since
        try:
            yield
        finally:
            self._idle_since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Counted for this trial so far."""
        return self._seconds


WATCH = Stopwatch()
"""That of this process."""
