"""Simulates a driver that is killed while it writes to its study."""

import contextlib
from collections.abc import Iterator

import pytest

from condkd_ray.study.journal import Journal


@contextlib.contextmanager
def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Interrupt the block after `writes` writes to the journal; the list then has one entry, otherwise it is empty.

    The write that is interrupted has no effect.
    """
    write, left, killed = Journal.append_logs, iter(range(writes)), []

    def append_logs(self, logs):
        if next(left, None) is None:
            killed.append(writes)
            raise KeyboardInterrupt
        write(self, logs)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Journal, "append_logs", append_logs)
        yield killed
