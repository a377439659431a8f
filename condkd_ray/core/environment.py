"""The process that computes: its settings before a trial, its free and peak memory, and the versions of its code."""

import atexit
import ctypes
import gc
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
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
from condkd_ray.core.units import UNIT_BYTES, byte_size


@cache
def keep_imports() -> None:
    """Exclude all objects that this process has created so far from later garbage collections."""
    # Imports create half a million objects; one collection of them takes a quarter of a second.
    gc.collect()
    gc.freeze()
    # Otherwise libraries that count their objects at exit report these as leaked.
    atexit.register(gc.unfreeze)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's `mallopt`: how many freed bytes it keeps, and the block size from which it uses `mmap`."""
KEPT_BYTES, MAPPED_BYTES = 2**31 - 1, (2**30, 2**25)
"""Largest value of `mallopt`, and the block sizes to try in turn: older versions refuse more than 32 MiB."""


CONTEXT_BYTES = 600_000_000
"""GPU memory of a process besides its tensors: the CUDA context and loaded kernels (our choice; about 500 MB are
reported for an H100)."""


def check_part(part: float, total: int, what: str) -> None:
    """Raise `InputError` for `what` if this `part` of a GPU of `total` bytes leaves no memory besides the context."""
    least = CONTEXT_BYTES / total
    accepted = (
        f"more than {least:.2g}: this part of a GPU of {total / 1e9:.1f} GB leaves no memory for tensors besides the "
        f"context of {CONTEXT_BYTES / 1e9:.1f} GB"
    )
    require(not 0 < part < 1 or part > least, what, part, accepted)


def set_up_gpu(part: float = 1.0, *, by_time: bool = False) -> None:
    """Set the numerics of a process that may use a GPU, and limit its tensors to `part` of the memory minus a context.

    Ray assigns a part of a GPU to a trial but does not enforce it. With the limit, the trial that exceeds its part
    fails instead of its neighbour.

    `by_time`: cuDNN measures its algorithms and uses the fastest. Without it, a run is repeatable on the same device.
    Raises `InputError` if `part` leaves no memory besides the context.
    """
    # TF32 for convolutions only. Float32 matrix products occur in losses, whose small differences TF32 would lose like
    # bfloat16; they are a hundredth of the work of a convolutional network. A loss cannot switch TF32 off for itself,
    # because a step that is compiled into one graph cannot contain such a switch.
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    # Not `cuda.matmul.fp32_precision`: PyTorch raises an error on reading it if the older switches were used as well.
    torch.set_float32_matmul_precision("highest")
    # Which algorithm is fastest can differ between runs, and with it the last bits, even if each one is deterministic.
    # Repeatable runs therefore need both: deterministic algorithms, and their choice by rule instead of by time.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = by_time
    if 0 < part < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties().total_memory
        check_part(part, total, "part of a GPU for a process")
        torch.cuda.set_per_process_memory_fraction(part - CONTEXT_BYTES / total)
    elif part >= 1 and torch.cuda.is_initialized():
        # Reset a limit set earlier in this process. Without a CUDA context there is none.
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
    with suppress(RuntimeError):  # PyTorch raises if both its older and newer switches were used
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
    """Set the number of PyTorch threads, and make the C allocator keep freed memory for the next tensors.

    `gpus`: the part of a GPU that the process has; see `set_up_gpu`.
    """
    torch.set_num_threads(threads)
    set_up_gpu(gpus)
    if sys.platform == "linux":
        # Otherwise each tensor of 32 MiB or more is mapped and zeroed page by page, which takes 4 to 7 % of a round at
        # 3x32x32. Only the GNU C library has `mallopt`.
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
        # The trim threshold alone would cost more time, because the mmap threshold then stays at its present value.
        if any(set_option(M_MMAP_THRESHOLD, size) for size in MAPPED_BYTES):
            set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def clean_process(threads: int, gpus: float = 1.0) -> None:
    """Reset a process that has run other trials, so that neither the next trial nor its record depends on them.

    `threads`: PyTorch threads; `gpus`: number of GPUs, or the part of one.
    """
    gc.collect()
    if sys.platform == "linux":
        # Return freed memory of earlier trials to the system. Only the GNU C library has `malloc_trim`.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    set_up_process(threads, gpus)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        # Writing "5" resets the peak of resident memory to its current value (Linux).
        peak.write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Return the peak of allocated GPU memory, or of resident memory for a CPU, since `clean_process`, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # `getrusage` would include the peak of the parent process.
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM:")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1: its affinity, limited by control group quotas.

    A quota is rounded down: 2.5 CPUs count as 2. Of nested groups the smallest quota counts, in cgroup v1 and v2.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the quota, in CPUs, of each control group of this process."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # In a container the root may be the process's own group, whatever path the machine reports.
            for group in (path := Path(own), *path.parents):
                for root in (GROUPS / controllers, GROUPS / "cpu") if controllers else (GROUPS, GROUPS / "unified"):
                    if quota := _quota(root / group.relative_to("/")):
                        yield quota


def _quota(group: Path) -> float | None:
    """Return the quota of a control group in CPUs; None if it has none."""
    with suppress(OSError, ValueError):
        if (whole := group / "cpu.max").is_file():
            quota, period = whole.read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    return None


def private_bytes() -> int:
    """Return this process's memory that belongs to no file and no other process; outside Linux, all resident memory."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return psutil.Process().memory_info().rss
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def default_device() -> str:
    """Return "cuda" if there is a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(name: object) -> str:
    """Return the name of a device for PyTorch, given as text or as a `torch.device`.

    Raises `InputError` unless it is the CPU or a GPU that exists.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *["cuda"] * bool(gpus), *(f"cuda:{index}" for index in range(gpus))]
    plain = str(name) if isinstance(name, torch.device) else name
    require(plain in names, "device", plain, ", ".join(names) if gpus else "cpu, because there is no GPU")
    return str(plain)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes, including GPU memory that PyTorch has reserved but not used."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + idle


SMALLER = (
    "smaller batches (distiller.batch, inversion.batch, teacher.training.batch), or more of a GPU for each trial, such "
    "as --gpus-per-trial 1"
)
_SIZE = r"(\d[\d.]*) ([KMGT]iB|bytes)"
_PATTERNS = (
    f"Of the allocated memory {_SIZE}",
    f"{_SIZE} allowed",
    f"total capacity of {_SIZE}",
    f"to allocate {_SIZE}",
)
"""Sizes in PyTorch's message: memory in use, the process's limit, the GPU's memory, the failed request."""


_LIBRARY_ERRORS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a GPU had too little memory for PyTorch's allocator, or for a library that allocates by itself."""
    # CUDA, cuBLAS and cuDNN failures are RuntimeErrors that differ from others only in their text.
    by_library = isinstance(error, RuntimeError) and any(text in str(error) for text in _LIBRARY_ERRORS)
    return by_library or isinstance(error, torch.cuda.OutOfMemoryError)


def out_of_memory(error: BaseException) -> str:
    """Return the message for a GPU with too little memory: memory in use, the limit, the request, and what helps."""
    text = " ".join(str(error).split())
    found = (re.search(pattern, text) for pattern in _PATTERNS)
    used, allowed, total, more = (match and byte_size(float(match[1]) * UNIT_BYTES.get(match[2], 1)) for match in found)
    numbers = f"{used} of {allowed or total} were in use, and {more} more were requested"
    return f"out of GPU memory: {numbers if used and more else text}; accepted: {SMALLER}"


@cache
def versions() -> dict[str, str]:
    """Return the versions of the software that shapes numbers; packages that are not installed (Ray) are left out."""
    # Our own version comes from the code in use: in a checkout or on a cluster it may differ from the installed one.
    found = {"condkd-ray": condkd_ray.__version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "ray", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def git_state() -> str:
    """Return the commit of this package's checkout, with `+` if it has changes; empty outside a checkout."""
    here = Path(condkd_ray.__file__).parent
    try:
        commit = subprocess.run(["git", "-C", here, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run(["git", "-C", here, "status", "--porcelain", "."], capture_output=True, text=True)
    except OSError:
        return ""
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "") if commit.returncode == 0 else ""


class CpuClock:
    """Sums the CPU time of this process and of all its descendants on this machine, including Ray's processes.

    The times of a process that Ray ends are lost with it. Therefore a sweep must call `tick` regularly; only the time
    between the last measurement and the end of a process is missed.
    """

    TICK = 0.5
    """Smallest number of seconds between two measurements by `tick` (our choice): one takes milliseconds."""

    def __init__(self) -> None:
        self._spent: dict[psutil.Process, float] = {}
        self._measured = -math.inf

    def tick(self) -> None:
        """Measure all processes, unless that was done less than `TICK` seconds ago."""
        if time.monotonic() - self._measured >= self.TICK:
            self.measure()

    def measure(self) -> float:
        """Measure all processes, and return the total CPU seconds so far."""
        self._measured = time.monotonic()
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            with suppress(psutil.Error):  # the process has just ended
                times = process.cpu_times()
                self._spent[process] = max(self._spent.get(process, 0.0), times.user + times.system)
        return sum(self._spent.values())
