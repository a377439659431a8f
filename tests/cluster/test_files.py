"""Files in the folder of a trial; complete trials under Tune are in `test_sweep.py`."""

import json
from pathlib import Path

import pytest

from condkd_ray.cluster.files import (
    attempts_path,
    clear_attempts,
    last_reason,
    note,
    one_line,
    trial_file,
    trial_folder,
)


def test_each_trial_has_one_folder_for_all_its_files(tmp_path: Path):
    assert trial_file(tmp_path, "a", "outcome").parent == trial_folder(tmp_path, "a") != trial_folder(tmp_path, "b")


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_exceptions_are_stored_and_counted_with_their_traces(tmp_path):
    trial = tmp_path / "trials" / "a"
    assert last_reason(trial) == ""
    assert note(trial, raised(ValueError("once"))) == 1
    assert note(trial, raised(OSError("twice\nand more"))) == 2
    assert last_reason(trial) == "OSError: twice"
    errors = json.loads(attempts_path(trial).read_text())["errors"]
    assert [error["reason"] for error in errors] == ["ValueError: once", "OSError: twice"]
    assert all("raise error" in error["trace"] for error in errors)
    clear_attempts(trial)
    assert last_reason(trial) == ""
    assert note(trial, raised(ValueError("again"))) == 1


def test_an_exception_of_an_actor_is_summarised_in_one_line_without_its_trace(cluster):
    import ray

    @ray.remote(num_cpus=0)
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError) as caught:
        ray.get(fail.remote())
    assert one_line(caught.value) == "KeyError: 'lost'"
