"""Runs a search that takes seconds, in the way users start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import programs

from condkd_ray.study.storage import open_storage

SPACE = """
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 4}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 2, batch: 64, width: 16, bn_weight: !log_uniform [0.1, 100]}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 100]}
  - none
distiller: {steps: 8, batch: 64, condensed_share: 0.5}
rounds: 4
"""


def command(home: Path, out: str, *flags: str) -> list[str]:
    """Return the command of a search of `home/small.yaml` that writes to `home/out`."""
    fixed = [str(home / "small.yaml"), "--out", str(home / out), "--cache", str(home / "cache")]
    return [sys.executable, "-m", "condkd_ray", "search", *fixed, *flags]


def environment() -> dict[str, str]:
    """Return the environment with one thread per process."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def search(home: Path, out: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a search to its end, within this process."""
    return programs.condkd(*command(home, out, *flags)[3:])


def journal_text(journal: Path) -> str:
    """Return a study's journal as text, without names of machines and times."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        for name in ("worker_id", "datetime_start", "datetime_complete"):
            line.pop(name, None)
        line.get("user_attr", {}).pop("node", None)
    return json.dumps(lines)


def stored(out: Path) -> optuna.Study:
    """Return the study of a search, opened with Optuna alone."""
    return optuna.load_study(study_name="search", storage=open_storage(None, out))
