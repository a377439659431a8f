import math
from pathlib import Path

import pytest
import tyro

from condkd_ray.commands.experiment import Flags
from condkd_ray.core.method import InputError
from condkd_ray.runs.options import Options


def test_typed_flags_are_parsed():
    typed = ["--resource", "big=1", "--resource", "disk=0.5", "--only", "ab", "cd", "--max-concurrent", "3"]
    flags = tyro.cli(Flags, args=typed)
    flags.check()
    assert flags.resources == {"big": 1.0, "disk": 0.5}
    assert (flags.only, flags.max_concurrent, flags.budget_seconds) == (("ab", "cd"), 3, math.inf)
    assert not flags.explain
    assert flags.device_pool_bytes is None


def test_the_device_pool_limit_is_passed_to_the_options_of_the_cluster():
    flags = tyro.cli(Flags, args=["--device-pool-limit", "1.5MB", "--gpus-per-trial", "0.5"])
    flags.check()
    assert flags.of_cluster(math.inf).device_pool_limit == 1_500_000


def test_trials_keep_their_files_in_the_output_folder_or_in_the_storage():
    assert Options(out=Path("runs/x")).place == Path.cwd() / "runs/x"
    assert Options(storage="shared").place == Path.cwd() / "shared"
    assert str(Options(storage="s3://bucket/x?region=us-east-1").place) == "s3://bucket/x"


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
        ({"device_pool_limit": "4"}, "--device-pool-limit is '4'; accepted: a size such as 500MB or 4GB"),
        (
            {"device_pool_limit": "4GB"},
            "--device-pool-limit for a trial on a CPU is '4GB'; accepted: none, or --gpus-per-trial above 0",
        ),
    ],
)
def test_bad_flags_are_refused_with_a_message(flags, message):
    with pytest.raises(InputError, match=message):
        Options(**flags).check()
