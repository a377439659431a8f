"""Signals of a driver: kept while Ray comes up, ended by where Ctrl-C is ignored, given back."""

import contextlib
import os
import signal

import pytest

from condkd_ray.cluster.connection.signals import as_ctrl_c, handling, interrupts_kept


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_sigterm_ends_as_ctrl_c_does_also_where_that_is_ignored(before):
    with handling(signal.SIGINT, before), handling(signal.SIGTERM, as_ctrl_c):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is before


def interrupted(times: int) -> list[int]:
    """How often Ctrl-C was pressed before the block was left."""
    reached = []
    with handling(signal.SIGINT, signal.default_int_handler), contextlib.suppress(KeyboardInterrupt):
        with interrupts_kept():
            for press in range(1, times + 1):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(press)
        reached.append(0)
    return reached


def test_ctrl_c_is_heard_at_the_end_and_a_second_one_at_once():
    assert interrupted(0) == [0]
    assert interrupted(1) == [1]
    assert interrupted(3) == [1]
