"""Settings that depend on the hardware are chosen before trials are identified by them."""

from pathlib import Path

import pytest
import torch
from toy import make_prepared, toy_config

from condkd_ray import api
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import find_record, read_records
from condkd_ray.methods.supervised import bf16_pays
from condkd_ray.runs import experiment
from condkd_ray.runs.experiment import run_alone
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.config import TrialConfig, dump, from_tree
from condkd_ray.trial.hardware import CPU, Hardware, compute_line, hardware_of, settled
from condkd_ray.trial.plan import trial_hash
from condkd_ray.trial.synthesis import precision
from trial.devices import TINY

H100 = Hardware("NVIDIA H100 80GB HBM3", True, 80 * 10**9)
OLD = Hardware("Tesla P100", False, 16 * 10**9)


@pytest.mark.parametrize(("hardware", "chosen"), [(CPU, "float32"), (H100, "bfloat16"), (OLD, "float32")])
def test_a_config_without_a_precision_gets_that_of_the_hardware(hardware, chosen):
    assert settled(TrialConfig(), hardware) == TrialConfig(precision=chosen)
    for given in ("float32", "bfloat16"):
        assert settled(TrialConfig(precision=given), hardware) == TrialConfig(precision=given)


def test_the_default_precision_in_a_file_is_null():
    assert "precision: null" in dump(TrialConfig())
    assert from_tree({"precision": None}) == from_tree({}) == TrialConfig()


def test_trials_of_two_precisions_have_two_hashes():
    prepared = make_prepared()
    hashes = {trial_hash(settled(toy_config(), hardware), prepared) for hardware in (CPU, H100)}
    assert len(hashes) == 2


def test_an_unsettled_config_computes_like_a_settled_one():
    assert not precision(toy_config(), torch.device("cpu"))._enabled
    assert precision(toy_config(precision="bfloat16"), torch.device("cpu"))._enabled


TF32 = "TF32 for convolutions that stay float32; samples on the GPU up to"


@pytest.mark.parametrize(
    ("hardware", "each", "limit", "line"),
    [
        (CPU, Allowance(1, 0), None, "the CPU, 1 thread each, in float32"),
        (CPU, Allowance(2.5, 0), None, "the CPU, 2 threads each, in float32"),
        (H100, Allowance(1, 0.5), None, f"NVIDIA H100 80GB HBM3, 0.5 of it each, in bfloat16, {TF32} 10.0 GB a trial"),
        (H100, Allowance(1, 1), 10**9, f"NVIDIA H100 80GB HBM3, one each, in bfloat16, {TF32} 1.0 GB a trial"),
        (OLD, Allowance(1, 2), None, f"Tesla P100, 2 each, in float32, {TF32} 4.0 GB a trial"),
    ],
)
def test_one_line_states_the_chosen_settings(hardware, each, limit, line):
    configs = [settled(TrialConfig(seed=seed), hardware) for seed in (0, 1)]
    assert compute_line(configs, hardware, each, limit) == f"trials compute on {line}"


def test_the_line_names_all_precisions_of_a_sweep():
    both = [TrialConfig(precision="float32"), TrialConfig(precision="bfloat16")]
    assert compute_line(both, CPU, Allowance()).endswith(", in bfloat16 or float32")


def timeless(history: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in row.items() if "time/" not in name} for row in history]


def test_the_precision_is_recorded_and_logged(tmp_path: Path, monkeypatch, logged):
    cache = tmp_path / "cache"
    plain = run_alone(TINY, tmp_path / "cpu", cache=cache, device="cpu")
    assert plain.config["precision"] == "float32"
    assert "trials compute on the CPU, 1 thread each, in float32" in logged
    again = run_alone(from_tree(plain.config), tmp_path / "cpu", cache=cache, device="cpu")
    assert again.config_hash == plain.config_hash
    assert len(read_records(tmp_path / "cpu")) == 1
    assert api.train(TINY, cache=cache, device="cpu").record.config_hash == plain.config_hash
    # As on a GPU with bfloat16, which the CPU emulates.
    monkeypatch.setattr(experiment, "hardware_of", lambda device: H100)
    fast = run_alone(TINY, tmp_path / "gpu", cache=cache, device="cpu")
    assert fast.config["precision"] == "bfloat16"
    assert fast.config_hash != plain.config_hash
    assert timeless(fast.history) != timeless(plain.history)
    assert find_record(tmp_path / "gpu", fast.config_hash).status == "finished"
    assert any(line.startswith("trials compute on NVIDIA H100") for line in logged)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_is_named_and_its_precision_is_one_it_supports():
    found = hardware_of("cuda")
    assert found.gpu == torch.cuda.get_device_name()
    assert found.bf16 == bf16_pays("cuda")
    assert found.memory > 10**9
    assert precision(TrialConfig(), torch.device("cuda"))._enabled == found.bf16
