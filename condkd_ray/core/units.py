"""Durations and sizes: as users type them, and as they are shown."""

import math
import re

from condkd_ray.core.method import require

UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
UNIT_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_duration(text: str, name: str) -> float:
    """Seconds of a text such as `30m`, `2h`, `1h30m` or `90s`, the value of `name`. Raises `InputError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
    spelled = "".join(number + unit for number, unit in parts)
    fits = spelled == text and 0 < seconds < math.inf
    require(fits, name, text, "hours, minutes and seconds such as 2h, 90m or 1h30m")
    return seconds


def parse_size(text: str, name: str) -> int:
    """Bytes of a text such as `500MB` or `4GB`, the value of `name`. Raises `InputError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(B|kB|MB|GB)", text)
    count = float(found[1]) * UNIT_BYTES[found[2]] if found else 0.0
    require(1 <= count < math.inf, name, text, "a size such as 500MB or 4GB")
    return int(count)


def duration(seconds: float | None) -> str:
    """`--` for None, else the two largest units: `45 s`, `3 min 05 s`, `2 h 10 min`, `1 d 04 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "--"
    whole = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller:02d} {below}"
    return f"{whole} s"


def byte_size(count: float) -> str:
    """`12 kB`, `1.5 MB` or `2.0 GB`; `inf` for more than can be counted."""
    if math.isinf(count):
        return "inf"
    for unit in ("GB", "MB"):
        if count >= UNIT_BYTES[unit]:
            return f"{count / UNIT_BYTES[unit]:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
