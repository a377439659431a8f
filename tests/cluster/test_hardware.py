"""The GPUs of a cluster, as far as a machine without any can tell; a fake one stands for those that are there."""

import os
import subprocess
import sys

import pytest
from places import TESTS

from cluster.drivers import PATH
from condkd_ray.cluster import hardware as asking
from condkd_ray.cluster.hardware import merged, trial_hardware
from condkd_ray.core.method import InputError
from condkd_ray.core.records import read_records
from condkd_ray.methods.distiller import Distiller
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.runs import experiment, search
from condkd_ray.runs.options import Options
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.space import Open
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.hardware import CPU, Hardware
from condkd_ray.trial.plan import Plan

H100, A100, P100 = Hardware("H100", bf16=True), Hardware("A100", bf16=True), Hardware("P100")
TINY = TrialConfig(
    teacher=TeacherConfig(network=ResNet(depth=8, width=4), training=Supervised(epochs=4)),
    student=ResNet(depth=8, width=2),
    inversion=Fast(steps=1, batch=16, latent=16, width=8),
    distiller=Distiller(steps=1, batch=16),
    rounds=1,
)
SPACE = {
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}, "training": {"epochs": 4}},
    "student": {"name": "resnet", "depth": 8, "width": 2},
    "inversion": {"name": "fast", "steps": 1, "batch": 16, "latent": 16, "width": 8},
    "distiller": {"steps": 1, "batch": 16, "lr": Open("uniform", (0.01, 0.1))},
    "rounds": 1,
}
LINE = "trials compute on H100, 0.5 of it each, in bfloat16, TF32 for convolutions that stay float32"


@pytest.fixture
def fake(monkeypatch):
    """A driver that thinks the GPUs are real and fast; its trials find none and emulate bfloat16."""
    monkeypatch.setattr(asking, "hardware_of", lambda device: H100)


def test_all_nodes_compute_in_one_precision():
    assert merged([CPU, CPU]) == CPU
    assert merged([H100, CPU, H100]) == H100
    assert merged([H100, A100]) == Hardware("H100 or A100", bf16=True)
    assert merged([H100, P100]) == Hardware("H100 or P100", bf16=False)


def test_trials_without_a_gpu_compute_on_the_cpu_whatever_the_machine_has(cluster, fake):
    assert trial_hardware(0) == CPU
    assert trial_hardware(0.5) == H100


def test_gpus_on_paper_are_the_cpu(cluster):
    assert trial_hardware(0.5) == CPU


def test_a_driver_without_a_gpu_asks_the_nodes_that_have_some():
    command = [sys.executable, str(TESTS / "cluster" / "gpu_nodes.py")]
    environment = os.environ | {"PYTHONPATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(CPU)


def test_a_sweep_settles_its_configs_once_and_says_so(cluster, fake, tmp_path, heard):
    cache = tmp_path / "cache"
    plans = [Plan("tiny", 0, 0, TINY)]
    assert experiment.run("toy", "?", plans, Options(out=tmp_path / "gpu", cache=cache, gpus_per_trial=0.5)).complete
    assert LINE in heard
    assert experiment.run("toy", "?", plans, Options(out=tmp_path / "cpu", cache=cache)).complete
    assert "trials compute on the CPU, 1 thread each, in float32" in heard
    (fast,), (plain,) = read_records(tmp_path / "gpu"), read_records(tmp_path / "cpu")
    assert (fast.config["precision"], plain.config["precision"]) == ("bfloat16", "float32")
    assert fast.config_hash != plain.config_hash
    assert "Nothing is left to run" in experiment.explained("toy", plans, Options(out=tmp_path / "cpu", cache=cache))


def test_two_trials_that_the_hardware_makes_equal_are_refused(cluster, fake, tmp_path):
    plans = [Plan("open", 0, 0, TINY), Plan("asked for", 0, 0, TrialConfig(**vars(TINY) | {"precision": "bfloat16"}))]
    with pytest.raises(InputError, match="one trial, planned twice, is 'open seed 0 and asked for seed 0'"):
        experiment.run("toy", "?", plans, Options(out=tmp_path / "out", cache=tmp_path, gpus_per_trial=0.5))


def test_a_search_computes_in_one_precision(cluster, fake, tmp_path, heard):
    spec = {"out": tmp_path / "out", "cache": tmp_path / "cache", "trials": 1}
    assert search.run("?", SPACE, SearchSpec(**spec, gpus_per_trial=0.5)).complete
    assert LINE in heard
    (record,) = read_records(tmp_path / "out")
    assert record.config["precision"] == "bfloat16"
    with pytest.raises(InputError, match="precision of study 'search' is 'float32'; accepted: bfloat16, that of its"):
        search.run("?", SPACE, SearchSpec(**spec | {"trials": 2}))
