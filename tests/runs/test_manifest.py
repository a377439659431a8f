"""The deployment files for clusters, checked as far as possible without a cluster."""

import shlex
from pathlib import Path

import pytest
import yaml
from places import CHECKOUT
from test_experiments import script
from tyro import cli

FOLDER = CHECKOUT / "experiments" / "cluster"


def loaded(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_file_begins_with_the_statement_that_it_was_not_run(path):
    assert path.read_text().startswith("# Not run here: ")


def test_the_job_runs_an_experiment_with_flags_that_exist():
    entrypoint = shlex.split(loaded("rayjob.yaml")["spec"]["entrypoint"])
    program, path, *flags = entrypoint
    assert (program, Path(path).name) == ("python", "ablate_ipc.py")
    args = cli(script("ablate_ipc").Args, args=flags)
    args.check()
    assert str(args.out).startswith("/shared/")
    assert str(args.cache).startswith("/shared/")


def test_the_job_requests_the_resources_of_its_workers():
    spec = loaded("rayjob.yaml")["spec"]
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}
    cluster = spec["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        (container,) = pod["template"]["spec"]["containers"]
        assert container["image"] == "IMAGE"
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    # KubeRay puts the value behind `ray start --resources=` in a shell.
    (offer,) = shlex.split(pods[1]["rayStartParams"]["resources"])
    assert yaml.safe_load(offer) == {"trials": 2}


def test_the_file_for_ray_up_is_valid_by_rays_schema():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(loaded("machines.yaml"))
    validate_config(prepared)
    assert prepared["provider"]["worker_ips"] == ["WORKER_1", "WORKER_2"]
    assert prepared["max_workers"] == 2
