"""A driver to be interrupted by a test: sweeps two toy trials on a private cluster, the second of which never ends.

It imports Ray before anything of ours, as a user's script may. Prints a line with the addresses listened on, one with
the pids of all processes once both trials have run, and how the sweep ended.

usage: interrupted.py FOLDER
"""

import os
import sys
from pathlib import Path

import ray  # isort: skip
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
        assert ray.is_initialized()
        print("listening", *processes.listening({os.getpid(), *processes.descendants(os.getpid())}), flush=True)
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
