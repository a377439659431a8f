"""Trials one after another in this process, without Ray: what a sweep is measured against.

usage: python -m benchmark.plain CONFIG SEED [SEED ...]
"""

import json
import sys
from dataclasses import replace

import torch

from benchmark.worlds import prepare
from condkd_ray.trial.config import from_tree
from condkd_ray.trial.run import local_store, run_trial


def main(tree: str, *seeds: str) -> None:
    """Run the trial of the config `tree`, as JSON, for each seed."""
    torch.set_num_threads(1)
    config = from_tree(json.loads(tree), "benchmark")
    prepared = prepare(config)
    for seed in seeds:
        trial = replace(config, seed=int(seed))
        run_trial(trial, prepared, local_store(trial, prepared, None))


if __name__ == "__main__":
    main(*sys.argv[1:])
