"""Signals of a driver: kept while Ray comes up, ended by where Ctrl-C is ignored, given back."""

import os
import signal

import pytest

from condkd_ray.cluster.interrupts import as_ctrl_c, handling, interrupts_kept


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_sigterm_ends_as_ctrl_c_does_also_where_that_is_ignored(before):
    with handling(signal.SIGINT, before), handling(signal.SIGTERM, as_ctrl_c):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_heard_at_the_end_and_a_second_one_at_once():
    reached = []
    with handling(signal.SIGINT, signal.default_int_handler):
        with pytest.raises(KeyboardInterrupt), interrupts_kept():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")
        assert reached == ["the end"]
        with pytest.raises(KeyboardInterrupt), interrupts_kept():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("more")
    assert reached == ["the end"]
