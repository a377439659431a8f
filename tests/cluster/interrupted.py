"""A driver to be interrupted by a test: sweeps two toy trials on a private cluster, the second of which never ends.

usage: interrupted.py FOLDER
"""

import os
import sys
from pathlib import Path

import processes
import toy

from condkd_ray.cluster.connect import connect
from condkd_ray.cluster.tuning import Trial, sweep


def main() -> None:
    prepared = toy.make_prepared()
    trials = [
        Trial("short", "short", toy.toy_config(rounds=2), prepared),
        Trial("long", "long", toy.toy_config(rounds=100_000), prepared),
    ]
    done: set[str] = set()

    def on_round(trial: Trial, metrics: dict) -> None:
        if trial.key == "long" and metrics["round"] > 2 and done == {"short"}:
            print("pids", *processes.descendants(os.getpid()), flush=True)
            done.add("said")

    with connect("local", cpus=2):
        complete = sweep(
            trials,
            folder=Path(sys.argv[1]),
            on_round=on_round,
            on_outcome=lambda trial, outcome: done.add(trial.key),
            checkpoint_seconds=0,
        )
    print("complete" if complete else "interrupted", flush=True)
    sys.exit(0 if complete else 130)


if __name__ == "__main__":
    main()
