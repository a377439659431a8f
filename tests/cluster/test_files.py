"""What a trial leaves in its folder; whole trials under Tune are in `test_sweep.py`."""

import json
import os
import signal
from pathlib import Path

import pytest

from condkd_ray.cluster.files import (
    attempts_path,
    last_reason,
    note,
    of_the_trial,
    one_line,
    start_anew,
    trial_file,
    trial_folder,
)


def test_all_of_a_trial_lies_in_one_folder(tmp_path: Path):
    assert trial_file(tmp_path, "a", "outcome").parent == trial_folder(tmp_path, "a") != trial_folder(tmp_path, "b")


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_exceptions_are_counted_over_processes_with_their_traces(tmp_path):
    trial = tmp_path / "trials" / "a"
    assert last_reason(trial) == ""
    assert note(trial, raised(ValueError("once"))) == 1
    assert note(trial, raised(OSError("twice\nand more"))) == 2
    assert last_reason(trial) == "OSError: twice"
    errors = json.loads(attempts_path(trial).read_text())["errors"]
    assert [error["reason"] for error in errors] == ["ValueError: once", "OSError: twice"]
    assert all("raise error" in error["trace"] for error in errors)
    start_anew(trial)
    assert last_reason(trial) == ""
    assert note(trial, raised(ValueError("again"))) == 1


def test_what_an_actor_raised_is_told_without_the_trace_from_there(cluster):
    import ray

    @ray.remote(num_cpus=0)
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        ray.get(fail.remote())
    assert one_line(caught.value) == "KeyError: 'lost'"


def test_a_process_that_is_missed_is_no_failure_of_the_trial(cluster):
    import ray
    from ray.exceptions import RayActorError

    @ray.remote(num_cpus=0)
    class Other:
        def pid(self):
            return os.getpid()

        def fail(self):
            raise OSError("by itself")

    other = Other.remote()
    with pytest.raises(OSError, match="by itself") as caught:
        ray.get(other.fail.remote())
    assert of_the_trial(caught.value)
    os.kill(ray.get(other.pid.remote()), signal.SIGKILL)
    with pytest.raises(RayActorError) as missed:
        ray.get(other.pid.remote())
    assert not of_the_trial(missed.value)
    assert of_the_trial(ValueError("its own"))
