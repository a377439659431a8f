"""What a run can do without, since the records can make it anew: where it fails that is told, and the run goes on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from condkd_ray.core.storage import no_room, reason

log = logging.getLogger(__name__)

LATER = "the run goes on without it, and makes it anew from the records at its end"
AGAIN = "the same command makes it anew from the records"
T = TypeVar("T")


@contextmanager
def dispensable(what: str, remedy: str, *but: type[Exception]) -> Iterator[list[Exception]]:
    """A block that writes `what`: its failure is told in one line with the `remedy`, and goes no further.

    Unless it is one of the kinds in `but`. What was raised is added to the list that the block gets.
    """
    failed: list[Exception] = []
    try:
        yield failed
    except but:
        raise
    except Exception as error:
        failed.append(error)
        told = no_room(error) or (reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        log.info(f"{what} cannot be written ({told.splitlines()[0]}); {remedy}")
        log.debug("the failure in full", exc_info=error)


class Dispensable(Generic[T]):
    """A writer that a run can do without: from its first failure on, which is told, it is asked for nothing more.

    `make` opens it, now, and once more in `renew`.
    """

    def __init__(self, what: str, make: Callable[[], T]) -> None:
        self._what, self._make = what, make
        self._writer: T | None = None
        self._open(LATER)

    def do(self, act: Callable[[T], object]) -> None:
        """Have the writer write something."""
        if self._writer is None:
            return
        with dispensable(self._what, LATER) as failed:
            act(self._writer)
        if failed:
            self._writer = None

    def renew(self, clear: Callable[[], object]) -> None:
        """Where it has failed: take away what it has left by `clear`, and open it once more, which makes it anew."""
        if self._writer is None:
            with dispensable(self._what, AGAIN) as failed:
                clear()
            if not failed:
                self._open(AGAIN)

    def _open(self, remedy: str) -> None:
        with dispensable(self._what, remedy):
            self._writer = self._make()
