"""Tests of `condkd_ray.core.environment`: process settings, memory, CPUs and versions."""

import contextlib
import gc
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from condkd_ray.core import environment
from condkd_ray.core.environment import (
    CONTEXT_BYTES,
    CpuClock,
    clean_process,
    free_bytes,
    keep_imports,
    peak_bytes,
    set_up_gpu,
    set_up_process,
    versions,
)
from condkd_ray.core.method import InputError


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_is_that_of_the_current_trial():
    block = torch.ones(100_000_000)
    before = peak_bytes(torch.device("cpu"))
    del block
    clean_process(1)
    assert peak_bytes(torch.device("cpu")) <= before - 300_000_000
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of each process")
def test_peak_memory_does_not_include_that_of_the_parent_process():
    block = torch.ones(250_000_000)
    code = "import torch; from condkd_ray.core.environment import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 50_000_000 < int(output) < block.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="only for the GNU allocator")
def test_memory_freed_by_the_thread_of_an_earlier_trial_is_returned_to_the_system():
    blocks: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: blocks.extend(torch.ones(2000) for _ in range(40_000)))
    thread.start()
    thread.join()
    # The last block stays, so that the allocator cannot simply shrink the end of its memory.
    del blocks[:-1]
    held = psutil.Process().memory_info().rss
    clean_process(1)
    assert psutil.Process().memory_info().rss < held - 100_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only for the GNU allocator")
def test_the_memory_of_freed_tensors_is_reused():
    # Huge pages are disabled, because each of them causes a single page fault.
    code = (
        "import ctypes; PR_SET_THP_DISABLE = 41; ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)\n"
        "import resource, torch; from condkd_ray.core.environment import set_up_process; set_up_process(1)\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "begin = faults(); torch.ones(16_000_000); print(faults() - begin)\n"
        "for _ in range(20): torch.ones(16_000_000)\n"
        "begin = faults()\n"
        "for _ in range(10): torch.ones(16_000_000)\n"
        "print(faults() - begin, torch.get_num_threads())"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    first, later, threads = map(int, output.split())
    assert first > 0.6 * 64_000_000 / resource.getpagesize()
    assert later < first / 10
    assert threads == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only for the GNU allocator")
@pytest.mark.parametrize(
    ("largest", "expected"),
    [(2**30, [(-3, 2**30), (-1, 2**31 - 1)]), (2**25, [(-3, 2**30), (-3, 2**25), (-1, 2**31 - 1)]),
     (0, [(-3, 2**30), (-3, 2**25)])],
)  # fmt: skip
def test_allocator_thresholds_are_reduced_for_older_allocators(largest, expected, monkeypatch):
    calls = []

    def mallopt(option, value):
        calls.append((option, value))
        return option == -1 or value <= largest

    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    set_up_process(torch.get_num_threads())
    assert calls == expected


@pytest.fixture
def gpu_settings(monkeypatch) -> Iterator[None]:
    """Restore PyTorch's cuDNN settings after the test."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_gpu_settings_are_deterministic_and_use_tf32_only_for_convolutions(gpu_settings):
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    set_up_process(torch.get_num_threads())
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    # The older settings, which the compiler reads, agree.
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    set_up_gpu(by_time=True)
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("gpus", "parts"), [(0.5, [0.49]), (1, []), (2, []), (0, [])])
def test_a_part_of_a_gpu_limits_memory_to_that_part_minus_the_context(gpus, parts, monkeypatch):
    fractions = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=100 * CONTEXT_BYTES))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    set_up_gpu(gpus)
    assert fractions == pytest.approx(parts)


def test_a_part_of_a_gpu_smaller_than_the_context_is_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=80 * 10**9))
    words = (
        r"part of a GPU for a process is 0\.005; accepted: more than 0\.0075: this part of a GPU of 80\.0 GB leaves "
        r"no memory for tensors besides the context of 0\.6 GB"
    )
    with pytest.raises(InputError, match=words):
        set_up_gpu(0.005)


def test_the_memory_limit_is_removed_for_a_whole_gpu(monkeypatch):
    fractions = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    set_up_gpu(0)
    assert fractions == []
    set_up_gpu(1)
    assert fractions == [1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_memory_is_available_again_after_the_limit_is_removed():
    total = torch.cuda.get_device_properties().total_memory
    try:
        set_up_gpu(CONTEXT_BYTES / total + 0.01)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(total // 20, dtype=torch.uint8, device="cuda")
    finally:
        set_up_gpu()
    assert len(torch.empty(total // 20, dtype=torch.uint8, device="cuda")) == total // 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_products_are_exact_and_convolutions_deterministic(gpu_settings):
    set_up_gpu()
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=rng)
    exact = (left.double() @ right.double()).float()
    # With TF32 the error would be about 1e-2.
    torch.testing.assert_close((left.cuda() @ right.cuda()).cpu(), exact, rtol=1e-4, atol=1e-3)
    images, weight = torch.randn(64, 32, 16, 16, generator=rng), torch.randn(32, 32, 3, 3, generator=rng)
    found = []
    for _ in range(3):
        x, w = images.cuda().requires_grad_(), weight.cuda().requires_grad_()
        torch.nn.functional.conv2d(x, w, padding=1).square().sum().backward()
        found.append((x.grad.clone(), w.grad.clone()))
    for grads in found[1:]:
        assert all(torch.equal(one, first) for one, first in zip(grads, found[0], strict=True))


def test_objects_created_after_the_imports_are_garbage_collected(monkeypatch):
    class Circle:
        def __init__(self) -> None:
            self.own = self

    freeze, frozen = gc.freeze, []

    def freeze_and_count() -> None:
        freeze()
        frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(gc, "freeze", freeze_and_count)
    keep_imports.cache_clear()
    keep_imports()
    try:
        circle = weakref.ref(Circle())
        keep_imports()
        # Objects are frozen only once. The count is stored at that time, because frozen objects can still be freed.
        (count,) = frozen
        assert count > 10_000
        clean_process(1)
        assert circle() is None
    finally:
        gc.unfreeze()
        keep_imports.cache_clear()


def test_free_memory_equals_that_of_proc_meminfo():
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("no /proc/meminfo here to compare with")
    (available,) = [int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line]
    assert free_bytes(torch.device("cpu")) == pytest.approx(1024 * available, rel=0.2)


def test_the_version_of_pytorch_is_the_running_one():
    assert torch.__version__.startswith(versions()["torch"])


def test_the_commit_is_that_of_the_packages_checkout_with_a_mark_for_changes(tmp_path, monkeypatch):
    package = tmp_path / "checkout" / "condkd_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(environment.condkd_ray, "__file__", str(package / "__init__.py"))
    git_state = environment.git_state.__wrapped__
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git_state() == ""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        done = subprocess.run(["git", *identity, *arguments], cwd=package, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    commit = git("rev-parse", "HEAD")
    assert git_state() == commit[:12]
    (package.parent / "notes.txt").write_text("beside the package", encoding="utf-8")
    assert git_state() == commit[:12]
    (package / "__init__.py").write_text("changed = True\n", encoding="utf-8")
    assert git_state() == f"{commit[:12]}+"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state.__wrapped__() == ""


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    def of(name):
        if name == "ray":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(environment, "version", of)
    assert versions.__wrapped__().keys() == {"condkd-ray", "python", "torch", "torchvision", "numpy"}


def test_cpu_seconds_increase_with_work():
    clock = CpuClock()
    before = clock.measure()
    while clock.measure() - before < 0.01:
        sum(range(1000))


def test_the_clock_of_cpu_seconds_ticks_only_now_and_then(monkeypatch):
    clock, measured = CpuClock(), list[bool]()
    measure = clock.measure
    monkeypatch.setattr(clock, "measure", lambda: measured.append(True) or measure())
    for _ in range(3):
        clock.tick()
    assert len(measured) == 1
    monkeypatch.setattr(clock, "TICK", 0.0)
    clock.tick()
    assert len(measured) == 2


def test_cpu_seconds_include_those_of_killed_processes():
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"
    clock = CpuClock()
    before = clock.measure()
    child = subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE, text=True)
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        assert child.stdout is not None
        child.stdout.readline()
        seen = clock.measure() - before
    # The kernel counts in units of 0.01 s.
    assert seen >= 0.28
    assert clock.measure() - before >= seen


def cpus_in_groups(monkeypatch, tmp_path: Path, own: str, quotas: dict[str, str]) -> int:
    """Return the usable CPUs of a process with an affinity of 8 CPUs in these control groups."""
    monkeypatch.setattr(environment, "GROUPS", tmp_path)
    monkeypatch.setattr(environment, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "own").write_text(own)
    for name, text in quotas.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return environment.usable_cpus()


def v1(quota: str, group: str = "cpu,cpuacct/docker/abc") -> dict[str, str]:
    """Return the files of a cgroup v1 with this quota, in microseconds per period of 50 ms."""
    return {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "50000\n"}


V1 = "5:memory:/a\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("own", "quotas", "cpus"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "300000 100000", "slurm/job/step/cpu.max": "max 100000"}, 3),
        ("0::/pod/here\n", {"cpu.max": "400000 100000"}, 4),
        (V1, v1("-1\n"), 8),
        (V1, v1("100000\n"), 2),
        (V1, v1("150000\n", "cpu"), 3),
        (V1, v1("50000\n", "memory/a"), 8),
        (V1, v1("garbage", "cpu"), 8),
    ],
)  # fmt: skip
def test_usable_cpus_are_limited_by_the_tightest_control_group(monkeypatch, tmp_path, own, quotas, cpus):
    assert cpus_in_groups(monkeypatch, tmp_path, own, quotas) == cpus


def test_usable_cpus_are_those_of_the_process_affinity(monkeypatch, tmp_path):
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from condkd_ray.core.environment import usable_cpus; print(usable_cpus())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
    monkeypatch.setattr(environment, "OWN_GROUPS", tmp_path / "missing")
    assert environment.usable_cpus() == len(os.sched_getaffinity(0))


def test_private_bytes_include_memory_that_the_process_allocates(tmp_path):
    before = environment.private_bytes()
    held = bytearray(b"1" * 2**26)
    assert environment.private_bytes() - before > 2**25
    del held
