"""A driver to be hit by tests: sweeps four toy trials, writes down what each came to, and goes on when started again.

It imports Ray before anything of ours, as a user's script may. Says `connecting`, `listening` and the addresses,
`round KEY NUMBER`, `done KEY`, and how it ended; exit codes are those of an experiment.

usage: driver.py FOLDER [ADDRESS [TIMES]], with so many times the rounds
"""

import os
import sys
from pathlib import Path

import ray  # isort: skip
import toy

from cluster import processes
from condkd_ray.cluster.connection.connect import connect
from condkd_ray.cluster.driver.options import Terms
from condkd_ray.cluster.driver.sweep import sweep
from condkd_ray.cluster.worker.trials import Trial
from condkd_ray.commands.console.exit_codes import exit_codes
from condkd_ray.core.method import Metrics
from condkd_ray.core.records import Outcome
from condkd_ray.trial.config import TrialConfig
from condkd_ray.trial.outcome import save_outcome

ROUNDS = {"a": 3, "b": 30, "c": 30, "d": 3}


def configs(times: int = 1) -> dict[str, TrialConfig]:
    """By key; `a` is over soon, two others are not."""
    return {key: toy.toy_config(rounds=times * rounds, seed=ord(key)) for key, rounds in ROUNDS.items()}


def done_path(folder: Path, key: str) -> Path:
    """Where the outcome of a trial is written down."""
    return folder / "done" / f"{key}.safetensors"


def main(folder: Path, address: str = "local", times: str = "1") -> int:
    prepared = toy.make_prepared()
    missing = {key: config for key, config in configs(int(times)).items() if not done_path(folder, key).exists()}

    def on_round(trial: Trial, metrics: Metrics) -> None:
        print("round", trial.key, metrics["round"], flush=True)

    def on_outcome(trial: Trial, outcome: Outcome) -> None:
        save_outcome(outcome, done_path(folder, trial.key))
        print("done", trial.key, outcome.reason, flush=True)

    print("connecting", flush=True)
    with connect(address, cpus=2 if address == "local" else None):
        assert ray.is_initialized()
        print("listening", *processes.listening({os.getpid(), *processes.descendants(os.getpid())}), flush=True)
        trials = [Trial(key, f"toy {key}", config, prepared) for key, config in missing.items()]
        terms = Terms(folder=folder, checkpoint_seconds=0)
        complete = sweep(trials, terms, on_round=on_round, on_outcome=on_outcome)
    print("complete" if complete else "interrupted", flush=True)
    return 0 if complete else 130


if __name__ == "__main__":
    with exit_codes():
        sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
