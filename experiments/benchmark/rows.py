"""Rows of what was measured: stored as Parquet, told as a Markdown table."""

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
"""Packages whose versions are told."""
HEADER = "| what | measured | smallest to largest | n | must reach | |\n|---|--:|--:|--:|--:|---|"


@dataclass(frozen=True)
class Measured:
    """A quantity, measured `len(values)` times; what it must reach, where there is such a bound."""

    what: str
    values: Sequence[float]
    unit: str
    sense: Literal["<=", ">=", ""] = ""
    bound: float = float("nan")
    why: str = ""
    """Why it takes what it takes: told where the bound is missed."""


Row = dict[str, Any]
"""A `Measured` as it is stored, with the machine and the versions it holds for. `value` is the median."""


def row(figure: str, measured: Measured, *, processor: str = "", packages: Sequence[str] = SHAPING) -> Row:
    """A row of today and of this machine; `processor`: what is to be told of it beside its kind."""
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
    """Its name, and what it has that convolutions are made of."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.is_file() else ""
    told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in told.items()}
    bf16 = any(flag in fields.get("flags", "").split() for flag in ("avx512_bf16", "amx_bf16"))
    widest = torch.backends.cpu.get_cpu_capability()
    return ", ".join(filter(None, (fields.get("model name", ""), widest, "bf16" if bf16 else "no bf16")))


def read(path: Path) -> list[Row]:
    """All rows in the file at `path`; none where that is not."""
    return pq.read_table(path).to_pylist() if path.is_file() else []


def store(path: Path, figure: str, fresh: Sequence[Row], order: Sequence[str]) -> None:
    """Put `fresh` in place of the rows of `figure`; figures come in `order`."""
    rows = [*(old for old in read(path) if old["figure"] != figure and old["figure"] in order), *fresh]
    rows.sort(key=lambda old: order.index(old["figure"]))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    atomic_write(path, buffer.getvalue().to_pybytes())


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, a row each; below it the machine, and for each bound that is missed by how much and why."""
    places = sorted({f"{one['machine']}; {one['versions']}; {one['date']}" for one in rows})
    missed = [(one, _told(one, abs(one["value"] - one["bound"]))) for one in rows if not one["met"]]
    reasons = [f"- Missed: {one['what']}, by {much}. {one['why']}".rstrip() for one, much in missed]
    where = f"Medians of n measurements. {' | '.join(places)}."
    return "\n".join([HEADER, *map(_line, rows), "", where, *[""] * bool(missed), *reasons]) + "\n"


def _line(one: Row) -> str:
    bound, verdict = "", ""
    if one["sense"]:
        bound, verdict = f"{one['sense']} {_told(one, one['bound'])}", "met" if one["met"] else "**missed**"
    spread = f"{_number(one['low'])} to {_number(one['high'])}" if one["n"] > 1 else ""
    return f"| {' | '.join((one['what'], _told(one, one['value']), spread, str(one['n']), bound, verdict))} |"


def _told(one: Row, value: float) -> str:
    return f"{_number(value)} {one['unit']}"


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
