"""Does a sampler that learns find good configs sooner than random draws?

Each seed begins with random trials that all its searches know; from there each sampler goes on alone. Compared are the
best value of the objective so far, trial by trial, and the test accuracy of the trial that a search would choose.

    python experiments/compare_samplers.py --trials 40 --rounds 6 --sampler-seeds 0 1 2 3 4
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from search_guidance import SPACES

from condkd_ray.disk import atomic_write
from condkd_ray.experiment import command_line
from condkd_ray.method import require
from condkd_ray.report.convergence import chosen, curve, draw, in_order, samplers_table
from condkd_ray.report.records import read_records
from condkd_ray.search import SearchFlags, run
from condkd_ray.space import read
from condkd_ray.study import Objective, Sampler
from condkd_ray.study.storages import JOURNAL


@dataclass(frozen=True, kw_only=True)
class Args(SearchFlags):
    """Flags of these searches, and those common to all."""

    space: Path = SPACES / "guidance.yaml"
    samplers: tuple[Sampler, ...] = ("random", "tpe")
    """The first is what others are compared with."""
    sampler_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    first: int = 10
    """Random trials that the searches of a seed share."""
    trials: int = 40
    """Of each search, these included."""
    rounds: int = 12
    out: Path = Path("runs/compare_samplers")


def searches(args: Args, seed: int) -> Iterator[SearchFlags]:
    """The shared start of a seed, then what goes on from it."""
    out = args.out / f"seed-{seed}"
    start = replace(args, sampler="random", sampler_seed=seed, trials=args.first, out=out / "first")
    yield start
    for sampler in args.samplers:
        known = (f"{start.out / JOURNAL}#{args.study}",)
        left = args.trials - args.first
        yield replace(start, sampler=sampler, trials=left, out=out / sampler, learn_from=known)


def compared(args: Args) -> str:
    """Draw and tabulate the finished searches."""
    objective = Objective(args.objective)
    name, direction = objective.names[0], objective.directions[0]
    curves, tested = {}, {}
    for sampler in args.samplers:
        folders = [[args.out / f"seed-{seed}" / part for part in ("first", sampler)] for seed in args.sampler_seeds]
        lives = [[record for out in both for record in in_order(read_records(out))] for both in folders]
        curves[sampler] = np.stack([curve(life, name, direction) for life in lives])
        tested[sampler] = np.array([chosen(life, name, direction) for life in lives])
    table = samplers_table(curves, tested, args.samplers[0], args.first, name)
    draw(args.out / "samplers.png", curves, args.first, name)
    atomic_write(args.out / "samplers.md", table.markdown().encode())
    return table.text()


def main(args: Args) -> int:
    """Search, then compare."""
    require(1 <= args.first < args.trials, "--first", args.first, f"1 to {args.trials - 1}")
    tree = read(args.space) | {"rounds": args.rounds}
    for seed in args.sampler_seeds:
        for flags in searches(args, seed):
            code = run(f"{flags.out.name}, seed {seed}", tree, flags)
            if code:
                return code
    print(compared(args))
    return 0


if __name__ == "__main__":
    command_line(Args, main)
