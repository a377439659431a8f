"""Rows of measured figures: stored as Parquet, printed as a Markdown table."""

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from condkd_ray.core.storage import atomic_write

SHAPING = ("ray", "torch", "numpy", "pyarrow")
"""Packages whose versions are stored."""
HEADER = "| what | measured | smallest to largest | n | must reach | |\n|---|--:|--:|--:|--:|---|"


@dataclass(frozen=True)
class Measured:
    """A quantity, measured `len(values)` times, with the bound that it must reach, if any."""

    what: str
    values: Sequence[float]
    unit: str
    sense: Literal["<=", ">=", ""] = ""
    bound: float = float("nan")
    why: str = ""
    """Explanation of the value, printed if the bound is missed."""


Row = dict[str, Any]
"""A `Measured` in stored form, with machine and versions. `value` is the median."""


def row(figure: str, measured: Measured, *, processor: str = "", packages: Sequence[str] = SHAPING) -> Row:
    """Return a row with today's date and this machine. `processor`: description added to the machine's architecture."""
    value, memory = median(measured.values), psutil.virtual_memory().total / 2**30
    kind = ", ".join(filter(None, (platform.machine(), processor)))
    met = {"<=": value <= measured.bound, ">=": value >= measured.bound, "": True}[measured.sense]
    return {
        "figure": figure,
        "what": measured.what,
        "value": value,
        "low": min(measured.values),
        "high": max(measured.values),
        "unit": measured.unit,
        "n": len(measured.values),
        "sense": measured.sense,
        "bound": measured.bound,
        "met": met,
        "why": "" if met else measured.why,
        "machine": f"{os.cpu_count()} cores ({kind}), {memory:.0f} GiB, {platform.system()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def processor() -> str:
    """Return the processor's name and the instruction sets that convolutions use."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    pairs = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    bf16 = any(flag in fields.get("flags", "").split() for flag in ("avx512_bf16", "amx_bf16"))
    widest = torch.backends.cpu.get_cpu_capability()
    return ", ".join(filter(None, (fields.get("model name", ""), widest, "bf16" if bf16 else "no bf16")))


def read(path: Path) -> list[Row]:
    """Return all rows in the file at `path`; none if it does not exist."""
    return pq.read_table(path).to_pylist() if path.is_file() else []


def store(path: Path, figure: str, fresh: Sequence[Row], order: Sequence[str]) -> None:
    """Replace the stored rows of `figure` by `fresh`; the file has figures in the given `order`."""
    rows = [*(old for old in read(path) if old["figure"] != figure and old["figure"] in order), *fresh]
    rows.sort(key=lambda old: order.index(old["figure"]))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    atomic_write(path, buffer.getvalue().to_pybytes())


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each row, the machines, and for each missed bound by how much and why."""
    places = sorted({f"{one['machine']}; {one['versions']}; {one['date']}" for one in rows})
    missed = [(one, _with_unit(one, abs(one["value"] - one["bound"]))) for one in rows if not one["met"]]
    reasons = [f"- Missed: {one['what']}, by {much}. {one['why']}".rstrip() for one, much in missed]
    where = f"Medians of n measurements. {' | '.join(places)}."
    return "\n".join([HEADER, *map(_line, rows), "", where, *[""] * bool(missed), *reasons]) + "\n"


def _line(one: Row) -> str:
    bound, verdict = "", ""
    if one["sense"]:
        bound, verdict = f"{one['sense']} {_with_unit(one, one['bound'])}", "met" if one["met"] else "**missed**"
    spread = f"{_number(one['low'])} to {_number(one['high'])}" if one["n"] > 1 else ""
    return f"| {' | '.join((one['what'], _with_unit(one, one['value']), spread, str(one['n']), bound, verdict))} |"


def _with_unit(one: Row, value: float) -> str:
    return f"{_number(value)} {one['unit']}"


def _number(value: float) -> str:
    """Return the value with three digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
