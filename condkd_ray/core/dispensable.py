"""Outputs that a run can do without, because they can be rebuilt from the records: a failure is logged, not raised."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from condkd_ray.core.storage import no_room, reason

log = logging.getLogger(__name__)

LATER = "the run continues without it and rebuilds it from the records at its end"
AGAIN = "the same command rebuilds it from the records"
T = TypeVar("T")


@contextmanager
def dispensable(what: str, remedy: str, *but: type[Exception]) -> Iterator[list[Exception]]:
    """Run a block that writes `what`; log a failure in one line, with the `remedy`, instead of raising it.

    Exceptions of the kinds in `but` are raised. The block receives a list to which the logged exception is added.
    """
    failed: list[Exception] = []
    try:
        yield failed
    except but:
        raise
    except Exception as error:
        failed.append(error)
        fault = no_room(error) or (reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        log.info(f"{what} cannot be written ({fault.splitlines()[0]}); {remedy}")
        log.debug("full traceback", exc_info=error)


class Dispensable(Generic[T]):
    """A writer that a run can do without: its first failure is logged, and from then on it is not called.

    `make` opens the writer: at once, and after a failure again in `renew`.
    """

    def __init__(self, what: str, make: Callable[[], T]) -> None:
        self._what, self._make = what, make
        self._writer: T | None = None
        self._open(LATER)

    def do(self, act: Callable[[T], object]) -> None:
        """Call `act` with the writer, unless it has failed."""
        if self._writer is None:
            return
        with dispensable(self._what, LATER) as failed:
            act(self._writer)
        if failed:
            self._writer = None

    def renew(self, clear: Callable[[], object]) -> None:
        """After a failure, remove the incomplete output with `clear` and open the writer again."""
        if self._writer is None:
            with dispensable(self._what, AGAIN) as failed:
                clear()
            if not failed:
                self._open(AGAIN)

    def _open(self, remedy: str) -> None:
        with dispensable(self._what, remedy):
            self._writer = self._make()
