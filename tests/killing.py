"""A driver that is killed while it writes into its study."""

import contextlib
from collections.abc import Iterator

import pytest

from condkd_ray.study.journal import Journal


@contextlib.contextmanager
def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """In the block, which it then leaves, nothing more than so many writes comes through; what is given holds whether.

    One number, of the write that did not come through, where there was one.
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
