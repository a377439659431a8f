"""Runs trials one after another in this process, without Ray, for comparison with a sweep.

usage: python -m benchmark.plain CONFIG SEED [SEED ...]
"""

import json
import sys
from dataclasses import replace

import torch

from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig, from_tree
from condkd_ray.trial.run import local_store, run_trial


def prepare(config: TrialConfig) -> Prepared:
    """Return what the trial needs, from the cache if it is there."""
    return Workshop(None, device="cpu").prepare(config)


def run(tree: str, *seeds: str) -> None:
    """Run the trial of the config `tree`, given as JSON, for each seed in turn."""
    torch.set_num_threads(1)
    config = from_tree(json.loads(tree), "benchmark")
    prepared = prepare(config)
    for seed in seeds:
        trial = replace(config, seed=int(seed))
        run_trial(trial, prepared, local_store(trial, prepared, None))


if __name__ == "__main__":
    run(*sys.argv[1:])
