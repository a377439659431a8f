import time

import pytest

from condkd_ray.cluster.stores import Stopwatch


def test_a_trial_is_told_what_it_waited_and_the_time_since_the_last_trial():
    watch = Stopwatch()
    with watch.running():
        time.sleep(0.2)
    with watch.trial():
        assert watch.seconds == 0
        with watch.running():
            time.sleep(0.05)
        time.sleep(0.1)
        assert 0.05 <= watch.seconds < 0.1
    time.sleep(0.06)
    with watch.trial():
        assert watch.seconds >= 0.06


def test_time_counts_and_a_trial_ends_where_an_error_is_raised():
    watch = Stopwatch()
    with pytest.raises(OSError), watch.trial(), watch.running():
        raise OSError
    assert watch.seconds > 0
    time.sleep(0.05)
    with watch.trial():
        assert watch.seconds >= 0.05
