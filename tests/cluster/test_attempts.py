import json

import pytest

from condkd_ray.cluster.attempts import attempts_path, last_reason, note, one_line, start_anew


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
