"""Times calls on a device and counts their launches; the CPU waits for the device only outside of the timed part."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
PEAKS = (("H100 PCIe", 756.0), ("H100", 989.0), ("H200", 989.0), ("A100", 312.0))
"""Dense bfloat16 TFLOP/s from the vendor's data sheets, by a part of the device's name; the first match counts."""


def peak_tflops(device: torch.device) -> float | None:
    """Return the TFLOP/s of the data sheet; None for a device that is not in the list."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for known, peak in PEAKS if known in name), None)


def wait(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Call, device: torch.device, *, repeats: int, warm_up: int = 3) -> float:
    """Return the median time of `repeats` calls, after `warm_up` calls; on a GPU measured by its own clock."""
    for _ in range(warm_up):
        call()
    wait(device)
    return median(_on_gpu(call, repeats) if device.type == "cuda" else _on_cpu(call, repeats))


def _on_gpu(call: Call, repeats: int) -> list[float]:
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def _on_cpu(call: Call, repeats: int) -> list[float]:
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        spent.append(1000 * (time.perf_counter() - begun))
    return spent


def launched(call: Call, device: torch.device, *, operators: bool = True) -> dict[str, Any]:
    """Count the work of one call: `operators` on the host; on a GPU also `launches` of kernels, `copies`, `busy_ms`.

    `busy_ms`: time in which at least one kernel or copy was running. With `operators=False` only GPU events are
    recorded, because counting many thousand operators takes seconds.
    """
    on_gpu = device.type == "cuda"
    counted = operators or not on_gpu
    wait(device)
    with profile(activities=[*[ProfilerActivity.CPU] * counted, *[ProfilerActivity.CUDA] * on_gpu]) as profiled:
        call()
        wait(device)
    events: Sequence[FunctionEvent] = profiled.events() or []
    host = sum(_is_operator(event) and not _is_operator(event.cpu_parent) for event in events)
    return ({"operators": host} if counted else {}) | (gpu_work(events) if on_gpu else {})


def gpu_work(events: Sequence[FunctionEvent]) -> dict[str, Any]:
    """Count the events that ran on the GPU."""
    there = [event for event in events if _on_device(event)]
    copies = sum(event.name.startswith(("Memcpy", "Memset")) for event in there)
    busy = _covered([(event.time_range.start, event.time_range.end) for event in there]) / 1000
    return {"launches": len(there) - copies, "copies": copies, "busy_ms": busy}


def _is_operator(event: FunctionEvent | None) -> bool:
    return event is not None and event.name.startswith("aten::")


def _on_device(event: FunctionEvent) -> bool:
    return event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of spans (begin, end)."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
