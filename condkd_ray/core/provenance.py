"""Of what code numbers come: versions of packages, and the commit."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import condkd_ray


@cache
def versions() -> dict[str, str]:
    """Of what shapes numbers."""
    # Of our own not that which is installed: shipped to a cluster, or in a checkout, it need not be.
    ours = {"condkd-ray": condkd_ray.__version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in ("torch", "torchvision", "ray", "numpy")}


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
