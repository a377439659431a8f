import math
from pathlib import Path

import pytest
import tyro

from condkd_ray.core.method import InputError
from condkd_ray.runs.experiment import Flags
from condkd_ray.runs.options import RunFlags, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "2 h", "1x", "0s", "-1m", "1h30"])
def test_other_texts_are_no_durations(text):
    with pytest.raises(InputError, match=r"--time-budget is .*; accepted: hours, minutes and seconds"):
        parse_duration(text)


def test_flags_as_typed():
    typed = ["--resource", "big=1", "--resource", "disk=0.5", "--only", "ab", "cd", "--max-concurrent", "3"]
    flags = tyro.cli(Flags, args=typed)
    flags.check()
    assert flags.resources == {"big": 1.0, "disk": 0.5}
    assert (flags.only, flags.max_concurrent, flags.budget_seconds) == (("ab", "cd"), 3, math.inf)
    assert not flags.explain


def test_trials_keep_their_files_in_the_output_folder_or_where_told():
    assert RunFlags(out=Path("runs/x")).place == Path.cwd() / "runs/x"
    assert RunFlags(storage="shared").place == Path.cwd() / "shared"
    assert str(RunFlags(storage="s3://bucket/x?region=us-east-1").place) == "s3://bucket/x"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"resource": ("big",)}, "--resource is 'big'; accepted: NAME=AMOUNT"),
        ({"resource": ("=1",)}, "--resource is '=1'"),
        ({"resource": ("big=1.5",)}, "--resource is 'big=1.5'"),
        ({"resource": ("big=0",)}, "--resource is 'big=0'"),
        ({"resource": ("GPU=1",)}, "accepted: --cpus-per-trial and --gpus-per-trial"),
        ({"resource": ("a=1", "a=2")}, "each NAME once"),
        ({"storage": "ftp://host/x"}, "--storage is 'ftp://host/x'; accepted: a folder, or the URI"),
        ({"max_concurrent": 0}, "--max-concurrent is 0; accepted: an integer >= 1"),
        ({"time_budget": "soon"}, "--time-budget is 'soon'"),
    ],
)
def test_bad_flags_are_answered_in_words(flags, message):
    with pytest.raises(InputError, match=message):
        RunFlags(**flags).check()
