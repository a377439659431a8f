"""A GPU that is out of memory ends a trial with a clear reason. On a CPU, the tests raise the error themselves."""

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from toy import make_prepared, toy_config

from condkd_ray.commands import train as command
from condkd_ray.core.config import to_tree
from condkd_ray.core.environment import SMALLER, is_out_of_memory, out_of_memory
from condkd_ray.core.records import read_records
from condkd_ray.methods.inversion import Fast
from condkd_ray.methods.supervised import Supervised, TeacherConfig
from condkd_ray.models import ResNet
from condkd_ray.trial import run as running
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.run import local_store, run_trial

WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 41.30 GiB is "
    "free. 39.00 GiB allowed; Of the allocated memory 37.50 GiB is allocated by PyTorch, and 212.00 MiB is reserved by "
    "PyTorch but unallocated. If reserved but unallocated memory is large try setting another option."
)
REASON = f"out of GPU memory: 37.50 GiB of 39.00 GiB were in use, and 2.00 GiB more were requested; accepted: {SMALLER}"


@dataclass(frozen=True, kw_only=True)
class Hungry(Fast):
    """Runs out of memory in its round `breaks`, counted from 1."""

    breaks: int = 2

    def synthesize(self, state, *args, **rest):
        made = super().synthesize(state, *args, **rest)
        state.hungry = getattr(state, "hungry", 0) + 1
        if state.hungry == self.breaks:
            raise torch.cuda.OutOfMemoryError(WORDS)
        return made


def hungry(**changes) -> TrialConfig:
    return toy_config(inversion=Hungry(steps=2, batch=16, latent=16, width=8, **changes))


def test_the_message_contains_the_used_memory_and_what_helps():
    assert out_of_memory(torch.cuda.OutOfMemoryError(WORDS)) == REASON
    whole = torch.cuda.OutOfMemoryError(WORDS.replace(" 39.00 GiB allowed;", ""))
    assert "37.50 GiB of 79.11 GiB were in use, and" in out_of_memory(whole)
    other = torch.cuda.OutOfMemoryError("CUDA out of memory:\nno numbers.")
    assert out_of_memory(other) == f"out of GPU memory: CUDA out of memory: no numbers.; accepted: {SMALLER}"


LACKING = [
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    ValueError("CUDA error: out of memory"),
]


def test_errors_of_libraries_that_allocate_themselves_are_recognised():
    assert [is_out_of_memory(error) for error in LACKING + OTHERS] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("error", LACKING[1:] + OTHERS, ids=str)
def test_a_trial_fails_with_these_errors_and_raises_others(error, monkeypatch):
    def raising(*args, **rest):
        raise error

    config, prepared = toy_config(rounds=1), make_prepared()
    monkeypatch.setattr(Fast, "synthesize", raising)
    store = local_store(config, prepared, None)
    if error in OTHERS:
        with pytest.raises(type(error)) as caught:
            run_trial(config, prepared, store)
        assert caught.value is error
    else:
        outcome = run_trial(config, prepared, store)
        assert outcome.status == "failed"
        assert outcome.reason.startswith(f"round 1: out of GPU memory: {str(error).split()[0]}")


def test_a_failed_trial_keeps_its_rounds():
    config, prepared, round_numbers = hungry(), make_prepared(), []
    store = local_store(config, prepared, None)
    outcome = run_trial(config, prepared, store, on_round=lambda metrics: round_numbers.append(metrics["round"]))
    assert (outcome.status, outcome.reason) == ("failed", f"round 2: {REASON}")
    assert [row["round"] for row in outcome.history] == round_numbers == [1]


def failing(*args, **rest):
    raise torch.cuda.OutOfMemoryError(WORDS)


@pytest.mark.parametrize(("what", "when"), [("resume", "before the first round"), ("end", "after the last round")])
def test_a_lack_of_memory_at_the_start_or_end_ends_the_trial_as_failed(what, when, monkeypatch):
    config, prepared = toy_config(rounds=1), make_prepared()
    monkeypatch.setattr(running, what, failing)
    outcome = run_trial(config, prepared, local_store(config, prepared, None))
    assert (outcome.status, outcome.reason) == ("failed", f"{when}: {REASON}")


def test_condkd_train_fails_with_the_reason_and_writes_a_record(tmp_path, monkeypatch, logged, capsys):
    teacher = TeacherConfig(network=ResNet(depth=8, width=4), training=Supervised(epochs=4))
    config = replace(toy_config(), teacher=teacher, rounds=1)
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(to_tree(config)))
    monkeypatch.setattr(Fast, "synthesize", failing)
    arguments = [str(tmp_path / "trial.yaml"), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    assert command.train(arguments) == 1
    (record,) = read_records(tmp_path / "out")
    assert (record.status, record.outcome.reason) == ("failed", f"round 1: {REASON}")
    assert any(REASON in line for line in logged)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_process_that_exceeds_its_share_of_a_gpu_gets_the_message():
    """The share is a twentieth; the test needs its own process, because the share of a process cannot be changed."""
    done = subprocess.run([sys.executable, "-c", GREEDY], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out of GPU memory: ")
    assert "were in use" in done.stdout


GREEDY = """
import torch
from condkd_ray.core.environment import out_of_memory, set_up_process
set_up_process(1, 0.05)
total = torch.cuda.get_device_properties().total_memory
torch.empty(total // 100, dtype=torch.uint8, device="cuda")
try:
    held = [torch.empty(total // 50, dtype=torch.uint8, device="cuda") for _ in range(3)]
except torch.cuda.OutOfMemoryError as error:
    print(out_of_memory(error))
"""
