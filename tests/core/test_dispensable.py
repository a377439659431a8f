import errno
import logging
import os

import pytest

from condkd_ray.core.dispensable import AGAIN, LATER, Dispensable, dispensable
from condkd_ray.core.method import InputError


class Writer:
    """Fails where it is told to; `written` is of all that were opened."""

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
    ("error", "told"),
    [
        (FULL, "/full/file: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied"),
        (ValueError("one line\nanother"), "ValueError: one line"),
    ],
)
def test_a_failure_is_told_with_its_cause_and_goes_no_further(heard, error, told):
    with dispensable("the page", "later more"):
        raise error
    assert heard == [f"the page cannot be written ({told}); later more"]


def test_what_the_user_gave_wrong_and_ctrl_c_go_further():
    with pytest.raises(InputError), dispensable("the page", "later more", InputError):
        raise InputError("a record is damaged")
    with pytest.raises(KeyboardInterrupt), dispensable("the page", "later more"):
        raise KeyboardInterrupt


def test_a_writer_that_failed_is_told_of_once_and_asked_no_more(heard, written):
    kept = Dispensable("it", Writer)
    kept.do(lambda writer: writer.write("before"))
    for _ in range(3):
        kept.do(lambda writer: writer.write("lost", FULL))
    kept.do(lambda writer: writer.write("not asked"))
    assert written == ["before"]
    assert heard == [f"it cannot be written (/full/file: No space left on device); {LATER}"]


def test_a_writer_that_failed_is_opened_once_more_and_another_is_left_alone(heard, written):
    opened, cleared = [FULL, None], []
    kept = Dispensable("it", lambda: Writer(opened.pop(0)))
    kept.do(lambda writer: writer.write("lost"))
    for _ in range(2):
        kept.renew(lambda: cleared.append(1))
    kept.do(lambda writer: writer.write("after"))
    assert (written, cleared, len(heard)) == (["after"], [1], 1)


def test_what_cannot_be_opened_in_the_end_is_left_to_the_next_run(heard):
    def fail() -> Writer:
        return Writer(FULL)

    kept = Dispensable("it", fail)
    kept.renew(lambda: None)
    kept.renew(fail)
    assert [line.partition("; ")[2] for line in heard] == [LATER, AGAIN, AGAIN]


def test_the_whole_trace_is_for_whoever_asks_for_details(heard):
    logging.getLogger("condkd_ray").setLevel(logging.DEBUG)
    with dispensable("the page", "later more"):
        raise FULL
    assert len(heard) == 2
