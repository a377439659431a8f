import errno
import logging
import os

import pytest

from condkd_ray.core.dispensable import AGAIN, LATER, Dispensable, dispensable
from condkd_ray.core.method import InputError


class Writer:
    """A writer that raises the given errors. `written` collects the texts of all instances."""

    written: list[str]

    def __init__(self, error: Exception | None = None) -> None:
        if error is not None:
            raise error

    def write(self, text: str, error: Exception | None = None) -> None:
        if error is not None:
            raise error
        self.written.append(text)


@pytest.fixture(autouse=True)
def written(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Writer, "written", found, raising=False)
    return found


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "/full/file: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
        (ValueError("one line\nanother"), "ValueError: one line"),
    ],
)
def test_a_failure_is_logged_with_its_cause_and_not_raised(logged, error, reason):
    with dispensable("the page", "later more"):
        raise error
    assert logged == [f"the page cannot be written ({reason}); later more"]


def test_input_errors_and_ctrl_c_are_raised():
    with pytest.raises(InputError), dispensable("the page", "later more", InputError):
        raise InputError("a record is damaged")
    with pytest.raises(KeyboardInterrupt), dispensable("the page", "later more"):
        raise KeyboardInterrupt


def test_a_failed_writer_is_logged_once_and_not_called_again(logged, written):
    kept = Dispensable("it", Writer)
    kept.do(lambda writer: writer.write("before"))
    for _ in range(3):
        kept.do(lambda writer: writer.write("lost", FULL))
    kept.do(lambda writer: writer.write("not called"))
    assert written == ["before"]
    assert logged == [f"it cannot be written (/full/file: No space left on device); {LATER}"]


def test_renew_opens_a_failed_writer_once(logged, written):
    opened, cleared = [FULL, None], []
    kept = Dispensable("it", lambda: Writer(opened.pop(0)))
    kept.do(lambda writer: writer.write("lost"))
    for _ in range(2):
        kept.renew(lambda: cleared.append(1))
    kept.do(lambda writer: writer.write("after"))
    assert (written, cleared, len(logged)) == (["after"], [1], 1)


def test_a_writer_that_cannot_be_reopened_is_left_to_the_next_run(logged):
    def fail() -> Writer:
        return Writer(FULL)

    kept = Dispensable("it", fail)
    kept.renew(lambda: None)
    kept.renew(fail)
    assert [line.partition("; ")[2] for line in logged] == [LATER, AGAIN, AGAIN]


def test_the_traceback_is_logged_at_debug_level(logged):
    logging.getLogger("condkd_ray").setLevel(logging.DEBUG)
    with dispensable("the page", "later more"):
        raise FULL
    assert len(logged) == 2
