"""A driver for fault tests: sweeps four toy trials, writes each outcome to a file, and continues if started again.

It imports Ray before this package, as a user's script may. It prints `connecting`, `listening` and the addresses,
`round KEY NUMBER`, `done KEY`, and finally `complete` or `interrupted`; exit codes are those of an experiment.

usage: driver_script.py FOLDER [ADDRESS [TIMES]]     TIMES multiplies the number of rounds
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import ray  # isort: skip
import toy

from cluster import processes
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.options import ClusterOptions
from condkd_ray.cluster.sweep import sweep
from condkd_ray.commands.console.exit_codes import exit_codes
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.outcome import save_outcome
from condkd_ray.trial.plan import Plan, PlannedTrial

ROUNDS = {"a": 3, "b": 30, "c": 30, "d": 3}


def configs(times: int = 1) -> dict[str, TrialConfig]:
    """Return the configs by key; `b` and `c` have ten times the rounds of `a` and `d`."""
    return {key: toy.toy_config(rounds=times * rounds, seed=ord(key)) for key, rounds in ROUNDS.items()}


def done_path(folder: Path, key: str) -> Path:
    """Return the path of the stored outcome of a trial."""
    return folder / "done" / f"{key}.safetensors"


@dataclass(frozen=True)
class Printer:
    folder: Path

    def round(self, trial: PlannedTrial, metrics: Metrics) -> None:
        print("round", trial.key, metrics["round"], flush=True)

    def ended(self, trial: PlannedTrial, outcome: Outcome) -> None:
        save_outcome(outcome, done_path(self.folder, trial.key))
        print("done", trial.key, outcome.reason, flush=True)


def main(folder: Path, address: str = "local", times: str = "1") -> int:
    prepared = toy.make_prepared()
    missing = {key: config for key, config in configs(int(times)).items() if not done_path(folder, key).exists()}

    print("connecting", flush=True)
    with connect(address, cpus=2 if address == "local" else None):
        assert ray.is_initialized()
        print("listening", *processes.listening({os.getpid(), *processes.descendants(os.getpid())}), flush=True)
        trials = [PlannedTrial(key, Plan(f"toy {key}", 0, 0, config), prepared) for key, config in missing.items()]
        complete = sweep(trials, ClusterOptions(folder=folder, checkpoint_seconds=0), Printer(folder))
    print("complete" if complete else "interrupted", flush=True)
    return 0 if complete else 130


if __name__ == "__main__":
    with exit_codes():
        sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
