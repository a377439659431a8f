"""Durations and sizes: parsing of what users type, and text for what is printed."""

import math
import re

from condkd_ray.core.method import require

UNIT_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
UNIT_BYTES = {
    **{"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}


def parse_duration(text: str, name: str) -> float:
    """Return the seconds in a text such as `30m`, `2h`, `1h30m` or `90s`.

    Raises `InputError`, with `name` as the thing that has the value, for any other text and for 0.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    seconds = sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
    spelled = "".join(number + unit for number, unit in parts)
    fits = spelled == text and 0 < seconds < math.inf
    require(fits, name, text, "hours, minutes and seconds such as 2h, 90m or 1h30m")
    return seconds


def parse_size(text: str, name: str) -> int:
    """Return the bytes in a text such as `500MB`, `4GB` or `2.5GiB`.

    Raises `InputError`, with `name` as the thing that has the value, for any other text and for less than 1 byte.
    """
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNIT_BYTES)})", text)
    count = float(found[1]) * UNIT_BYTES[found[2]] if found else 0.0
    require(1 <= count < math.inf, name, text, "a size such as 500MB or 4GB")
    return int(count)


def duration(seconds: float | None) -> str:
    """Return the two largest units of a duration: `45 s`, `3 min 05 s`, `2 h 10 min`, `1 d 04 h`; `--` if unknown.

    None and values that are not finite are unknown.
    """
    if seconds is None or not math.isfinite(seconds):
        return "--"
    whole = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller:02d} {below}"
    return f"{whole} s"


def byte_size(count: float) -> str:
    """Return a number of bytes as `12 kB`, `1.5 MB` or `2.0 GB`; `inf` for an infinite one."""
    if math.isinf(count):
        return "inf"
    for unit in ("GB", "MB"):
        if count >= UNIT_BYTES[unit]:
            return f"{count / UNIT_BYTES[unit]:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
