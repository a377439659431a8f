"""The GPUs of a cluster, tested on a machine without GPUs: a simulated one replaces them."""

import os
import signal
import subprocess
import sys

import pytest
import ray
from places import TESTS
from ray.exceptions import TaskCancelledError
from trial.devices import TINY

from cluster.drivers import PATH
from condkd_ray.cluster import hardware as hardware_module
from condkd_ray.cluster.hardware import merged, trial_hardware
from condkd_ray.core.method import ClusterError, InputError
from condkd_ray.core.records import read_records
from condkd_ray.runs import experiment, search
from condkd_ray.runs.options import Options
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.space import Open
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.hardware import CPU, Hardware
from condkd_ray.trial.plan import Plan

H100, A100, P100 = (
    Hardware(name, bf16, memory * 10**9)
    for name, bf16, memory in [("H100", True, 80), ("A100", True, 40), ("P100", False, 16)]
)
SPACE = {
    "teacher": {"network": {"name": "resnet", "depth": 8, "width": 4}, "training": {"epochs": 4}},
    "student": {"name": "resnet", "depth": 8, "width": 2},
    "inversion": {"name": "fast", "steps": 1, "batch": 16, "latent": 16, "width": 8},
    "distiller": {"steps": 1, "batch": 16, "lr": Open("uniform", (0.01, 0.1))},
    "rounds": 1,
}
LINE = (
    "trials compute on H100, 0.5 of it each, in bfloat16, TF32 for convolutions that stay float32; "
    "samples on the GPU up to 10.0 GB per trial"
)


@pytest.fixture
def fake(monkeypatch):
    """A driver that takes the simulated GPUs for real, fast ones; its trials find none and emulate bfloat16."""
    monkeypatch.setattr(hardware_module, "default_device", lambda: "cuda")
    monkeypatch.setattr(hardware_module, "hardware_of", lambda device: H100)


def test_all_nodes_compute_in_one_precision():
    assert merged([CPU, CPU]) == CPU
    assert merged([H100, CPU, H100]) == H100
    assert merged([H100, A100]) == Hardware("H100 or A100", True, 40 * 10**9)
    assert merged([H100, P100]) == Hardware("H100 or P100", False, 16 * 10**9)


def test_trials_without_a_gpu_compute_on_the_cpu_whatever_the_machine_has(cluster, fake):
    assert trial_hardware(0) == CPU
    assert trial_hardware(0.5) == H100


def test_a_gpu_share_without_memory_for_a_trial_is_refused_before_it_starts(cluster, fake):
    with pytest.raises(
        InputError, match=r"--gpus-per-trial is 0\.005; accepted: more than 0\.0075: .* the context of 0\.6"
    ):
        trial_hardware(0.005)


def test_a_driver_without_visible_gpus_queries_its_own_node(cluster, monkeypatch):
    requested = []
    monkeypatch.setattr(
        hardware_module, "hardware_of", lambda _: pytest.fail("the driver's own view says nothing of the node")
    )
    monkeypatch.setattr(hardware_module, "request_hardware", lambda node, gpus: requested.append(gpus) or ray.put(H100))
    assert trial_hardware(0.5) == H100
    assert requested == [0.5]


def of_nodes(monkeypatch, answers: list) -> Hardware:
    """Return the hardware of trials on nodes with a GPU each, whose answers are these references."""
    nodes = {f"node {number}": answer for number, answer in enumerate(answers)}
    alive = [{"NodeID": name, "Alive": True, "Resources": {"GPU": 1.0}} for name in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    monkeypatch.setattr(hardware_module, "request_hardware", lambda node, gpus: nodes[node])
    return trial_hardware(1.0)


def test_the_query_of_a_node_that_does_not_answer_in_time_is_cancelled(cluster, monkeypatch):
    """The task of this node waits for a resource that no node has."""
    monkeypatch.setattr(hardware_module, "PATIENCE_SECONDS", 0.1)
    never = ray.remote(num_cpus=0, resources={"nowhere": 1})(lambda: H100).remote()
    assert of_nodes(monkeypatch, [ray.put(A100), never]) == A100
    with pytest.raises(TaskCancelledError):
        ray.get(never, timeout=20)


def test_simulated_gpus_count_as_the_cpu(cluster):
    assert trial_hardware(0.5) == CPU


@pytest.mark.slow
def test_a_driver_without_a_gpu_queries_the_nodes_with_gpus():
    command = [sys.executable, str(TESTS / "cluster" / "gpu_nodes.py")]
    environment = os.environ | {"PYTHONPATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(CPU)


@pytest.mark.slow
def test_a_sweep_fixes_its_precision_once_and_logs_it(cluster, fake, tmp_path, logged):
    cache = tmp_path / "cache"
    plans = [Plan("tiny", 0, 0, TINY)]
    assert experiment.run("toy", "?", plans, Options(out=tmp_path / "gpu", cache=cache, gpus_per_trial=0.5)).complete
    assert LINE in logged
    assert experiment.run("toy", "?", plans, Options(out=tmp_path / "cpu", cache=cache)).complete
    assert "trials compute on the CPU, 1 thread each, in float32" in logged
    (fast,), (plain,) = read_records(tmp_path / "gpu"), read_records(tmp_path / "cpu")
    assert (fast.config["precision"], plain.config["precision"]) == ("bfloat16", "float32")
    assert fast.config_hash != plain.config_hash
    assert "Nothing is left to run" in experiment.explained("toy", plans, Options(out=tmp_path / "cpu", cache=cache))


def test_two_plans_that_are_equal_on_this_hardware_are_refused(cluster, fake, tmp_path):
    plans = [Plan("open", 0, 0, TINY), Plan("bfloat16", 0, 0, TrialConfig(**vars(TINY) | {"precision": "bfloat16"}))]
    with pytest.raises(InputError, match="trial planned twice is 'open seed 0 and bfloat16 seed 0'"):
        experiment.run("toy", "?", plans, Options(out=tmp_path / "out", cache=tmp_path, gpus_per_trial=0.5))


@pytest.mark.slow
def test_a_search_computes_in_one_precision(cluster, fake, tmp_path, logged):
    spec = {"out": tmp_path / "out", "cache": tmp_path / "cache", "trials": 1}
    assert search.run("?", SPACE, SearchSpec(**spec, gpus_per_trial=0.5)).complete
    assert LINE in logged
    (record,) = read_records(tmp_path / "out")
    assert record.config["precision"] == "bfloat16"
    with pytest.raises(InputError, match="precision of study 'search' is 'float32'; accepted: bfloat16, that of its"):
        search.run("?", SPACE, SearchSpec(**spec | {"trials": 2}))


def test_a_lost_node_is_left_out_and_an_error_is_raised_if_no_node_answers(cluster, monkeypatch):
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    lost = ray.remote(num_cpus=0, max_retries=0)(die)
    assert of_nodes(monkeypatch, [ray.put(A100), lost.remote()]) == A100
    with pytest.raises(ClusterError, match=r"^no node with a GPU has answered"):
        of_nodes(monkeypatch, [lost.remote()])
