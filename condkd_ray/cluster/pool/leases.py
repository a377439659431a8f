"""Per-key leases that expire after 15 s without a heartbeat."""

import time
from collections.abc import Callable

SILENCE_SECONDS = 15.0
"""After so long without a heartbeat a lease is free (our choice; one comes every two seconds)."""


class Leases:
    """Leases by key. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}

    def claim(self, key: str, who: str) -> bool:
        """Whether `who` now holds the lease of `key`: it did before, or nobody does. A heartbeat where it does."""
        holder, heard = self._held.get(key, (who, 0.0))
        free = self._clock() - heard > SILENCE_SECONDS
        if holder == who or free:
            self._held[key] = (who, self._clock())
        return holder == who or free

    def release(self, key: str, who: str) -> None:
        """Let another have it, if it is `who`'s."""
        if self.holder(key) == who:
            del self._held[key]

    def holder(self, key: str) -> str:
        """Who holds it, or held it last; empty where nobody does."""
        return self._held.get(key, ("", 0.0))[0]
