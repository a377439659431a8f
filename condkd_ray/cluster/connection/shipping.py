"""This package on the machines of a cluster: shipped from here, unless the job that we run in has brought it along."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import condkd_ray

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where a program that `ray job submit` has started finds what it was submitted with, as JSON."""


def runtime_env() -> dict[str, Any] | None:
    """What to give to Ray when connecting to a cluster: the package as it lies here, without caches.

    None in a job that was submitted with code of its own: workers then have what we have.
    """
    if _job_env().keys() & {"working_dir", "py_modules"}:
        return None
    return {"py_modules": [str(Path(condkd_ray.__file__).parent)], "excludes": ["**/__pycache__/"]}


def in_job_folder(path: Path) -> bool:
    """Whether `path` lies in the copy of a working directory that Ray made for a job, and deletes after it."""
    return "working_dir" in _job_env() and path.resolve().is_relative_to(Path.cwd())


def _job_env() -> dict[str, Any]:
    return json.loads(os.environ.get(JOB, "{}")).get("runtime_env") or {}
