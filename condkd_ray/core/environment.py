"""The process that computes: reset before a trial, its peak and free memory, and the versions of its code."""

import atexit
import ctypes
import gc
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import condkd_ray
from condkd_ray.core.method import require


@cache
def keep_imports() -> None:
    """Leave what this process has loaded so far out of all later collections of garbage."""
    # These are half a million objects; to look through them once takes a quarter of a second.
    gc.collect()
    gc.freeze()
    # Else libraries that count their objects at the end say that these are leaked.
    atexit.register(gc.unfreeze)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of the GNU allocator's `mallopt`: freed bytes that it keeps, and from how many on a block is mapped."""
KEPT_BYTES, MAPPED_BYTES = 2**31 - 1, (2**30, 2**25)
"""The most that `mallopt` can be told, and what it is asked for in turn: older ones refuse more than 32 MiB."""


CONTEXT_BYTES = 600_000_000
"""Of a GPU's memory that a process takes beside its tensors: its context, and the kernels it has loaded (our choice;
about 500 MB are reported of an H100)."""


def check_part(part: float, total: int, what: str) -> None:
    """Raise `InputError` on `what` where this `part` of a GPU of `total` bytes leaves no memory beside a context."""
    least = CONTEXT_BYTES / total
    accepted = (
        f"more than {least:.2g}: this much of a GPU of {total / 1e9:.1f} GB leaves nothing for tensors beside a "
        f"context of {CONTEXT_BYTES / 1e9:.1f} GB"
    )
    require(not 0 < part < 1 or part > least, what, part, accepted)


def set_up_gpu(part: float = 1.0, *, by_time: bool = False) -> None:
    """Settings of a process that may compute on a GPU, of whose memory its tensors may take `part`, less a context.

    Ray gives a trial a part of a GPU but does not see to it. So whoever takes more is told so, not its neighbour.

    `by_time`: cuDNN tries its algorithms out and takes the fastest. Without it a run repeats on one device.
    Raises `InputError` for a part that leaves no memory beside the context.
    """
    # Convolutions alone. Matrix products in float32 are those of losses, whose differences TF32 would drown as bfloat16
    # would; of the work of a convolutional network they are a hundredth. And no loss can switch it off for itself: a
    # compiled step, whole in one graph, cannot hold such a switch.
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    # Not by `cuda.matmul.fp32_precision`: where somebody has used the older switches too, PyTorch then refuses to tell.
    torch.set_float32_matmul_precision("highest")
    # What is fastest differs between two runs where several are almost so, and with it the last bits, although each of
    # them is deterministic. So it takes both: none that adds up in any order, and the choice by rule.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = by_time
    if 0 < part < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        check_part(part, total, "part of a GPU for a process")
        torch.cuda.set_per_process_memory_fraction(part - CONTEXT_BYTES / total)
    elif part >= 1 and torch.cuda.is_initialized():
        # The process may have had a part before; one that has not begun with the GPU had none.
        torch.cuda.set_per_process_memory_fraction(1.0)


LEFT_BY_LIBRARIES = ("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR")
"""Environment variables that scikit-learn and PyTorch set when they are imported or used."""


@contextmanager
def settings_kept() -> Iterator[None]:
    """Restore, after the block, what this package and its libraries set in a process.

    These are the settings of PyTorch that `set_up_gpu` makes, and `LEFT_BY_LIBRARIES`.
    """
    variables = {name: os.environ.get(name) for name in LEFT_BY_LIBRARIES}
    try:
        with _gpu_settings_kept() if torch.cuda.is_available() else nullcontext():
            yield
    finally:
        set_variables(variables)


def set_variables(values: Mapping[str, str | None]) -> None:
    """Set these environment variables, and remove those whose value is None."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def _gpu_settings_kept() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    flags, convolutions = (cudnn.deterministic, cudnn.benchmark), cudnn.conv.fp32_precision
    precision = None
    with suppress(RuntimeError):  # PyTorch refuses to tell where somebody has used both its older and newer switches
        precision = torch.get_float32_matmul_precision()
    fraction = torch.cuda.get_per_process_memory_fraction() if torch.cuda.is_initialized() else 1.0
    try:
        yield
    finally:
        (cudnn.deterministic, cudnn.benchmark), cudnn.conv.fp32_precision = flags, convolutions
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if torch.cuda.is_initialized():
            torch.cuda.set_per_process_memory_fraction(fraction)


def set_up_process(threads: int, gpus: float = 1.0) -> None:
    """Give PyTorch `threads` threads, and have the C allocator keep the memory of freed tensors for the next ones.

    On a GPU, of which the process has `gpus`: see `set_up_gpu`.
    """
    torch.set_num_threads(threads)
    set_up_gpu(gpus)
    if sys.platform == "linux":
        # Else every tensor of 32 MiB or more is asked of the system and zeroed page by page, which takes 4 to 7 % of a
        # round at 3x32x32. Other allocators than the GNU one have no such call.
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
        # The second alone would make it worse: the first then stays where it happens to be.
        if any(set_option(M_MMAP_THRESHOLD, size) for size in MAPPED_BYTES):
            set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def clean_process(threads: int, gpus: float = 1.0) -> None:
    """Make a process that has run other trials like a fresh one, to the trial and to its record.

    It has `threads` threads and `gpus` GPUs, or a part of one.
    """
    gc.collect()
    if sys.platform == "linux":
        # What earlier trials have freed the allocator still holds; where it is not the GNU one there is no such call.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    set_up_process(threads, gpus)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        # "5" sets the peak of resident memory back to what it is now (Linux).
        peak.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Most GPU memory allocated, or most resident memory of the process, since it was made clean."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not what `getrusage` says: there a process inherits the peak of the one that started it.
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM:")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1: those it may run on, or fewer by the quota of a control group.

    Whole ones: of a quota of 2.5 they are 2. Of groups within groups the least quota counts, of cgroup v1 and v2.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas())]))


def _quotas() -> Iterator[float]:
    """CPUs by the quota of each control group that this process is in."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # In a container what lies at the root may be its own group, whatever its path outside is.
            for group in (path := Path(own), *path.parents):
                for root in (GROUPS / controllers, GROUPS / "cpu") if controllers else (GROUPS, GROUPS / "unified"):
                    if quota := _quota(root / group.relative_to("/")):
                        yield quota


def _quota(group: Path) -> float | None:
    """CPUs by the quota of this group; None where it has none."""
    with suppress(OSError, ValueError):
        if (whole := group / "cpu.max").is_file():
            quota, period = whole.read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    return None


def private_bytes() -> int:
    """Memory of this process that is no file's and no other's; all that it has in main memory where Linux is not."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return psutil.Process().memory_info().rss
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def default_device() -> str:
    """The GPU where there is one, else the CPU, as PyTorch names them."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_bytes(device: torch.device) -> int:
    """Memory of the device that is free, in bytes; of a GPU also what PyTorch holds and does not use."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle


SMALLER = (
    "smaller batches (distiller.batch, inversion.batch, teacher.training.batch), or more of a GPU for each trial, such "
    "as --gpus-per-trial 1"
)
_SIZE = r"(\d[\d.]* [A-Za-z]+)"
_SAID = (f"Of the allocated memory {_SIZE}", f"{_SIZE} allowed", f"total capacity of {_SIZE}", f"to allocate {_SIZE}")
"""By PyTorch: what was taken, the part given, the GPU's memory, what was asked for."""


_LIBRARIES_SAY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had too little memory: for PyTorch's allocator, or for a library that allocates by itself."""
    # What CUDA, cuBLAS and cuDNN refuse comes as a RuntimeError, which only its words tell from any other.
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _LIBRARIES_SAY)
    return said or isinstance(error, torch.cuda.OutOfMemoryError)


def out_of_memory(error: BaseException) -> str:
    """What a user is told of a GPU that had too little memory: what was taken, of how much, and what helps."""
    said = " ".join(str(error).split())
    taken, allowed, total, more = (match and match[1] for match in (re.search(pattern, said) for pattern in _SAID))
    numbers = f"{taken} were taken of {allowed or total}, and {more} more asked for"
    return f"out of GPU memory: {numbers if taken and more else said}; accepted: {SMALLER}"


@cache
def versions() -> dict[str, str]:
    """Of what shapes numbers; without Ray, which one trial alone does not need, where it is not installed."""
    # Of our own not that which is installed: shipped to a cluster, or in a checkout, it need not be.
    found = {"condkd-ray": condkd_ray.__version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "ray", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def git_state() -> str:
    """Commit of the checkout this package runs from, with `+` if it was changed; empty outside one."""
    here = Path(condkd_ray.__file__).parent
    try:
        commit = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run(["git", "-C", here, "status", "--porcelain", "."], capture_output=True, text=True)
    except OSError:
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "") if commit.returncode == 0 else ""


class CpuClock:
    """CPU seconds of this process and all it starts on this machine, Ray's processes included.

    A process that Ray ends takes its times with it, so whoever runs a sweep has to `look` now and then; what a process
    spends between the last look and its end is missed.
    """

    def __init__(self) -> None:
        self._spent: dict[psutil.Process, float] = {}

    def look(self) -> float:
        """The seconds so far."""
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):  # it ended between two lines
                times = process.cpu_times()
                self._spent[process] = max(self._spent.get(process, 0.0), times.user + times.system)
        return sum(self._spent.values())
