"""Does a sweep survive faults? Many seeded faults strike, and all results must equal those of an undisturbed run.

An ablation and a search alternate on a cluster of two nodes on this machine until all faults have struck: killed
trials, pools, loaders of chunks, nodes and drivers, after which the same command runs again; memory taken by another
program until Ray's monitor kills processes; `condkd report` at the same time; a full disk for TensorBoard; a torn
journal.

    python experiments/soak.py --faults 100 --seed 0

Memory and disk faults need permission to create a control group and to mount (Linux, as root): then everything runs in
a control group of 8 GiB, and no other program is affected. `--kinds` selects kinds of faults.
"""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chaos.commands import commands
from chaos.plan import SHARES, Kind, schedule
from chaos.small_machine import allowed, here, small_machine

from condkd_ray.commands.experiment import command_line


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of this experiment."""

    faults: int = 100
    seed: int = 0
    """Seed of the faults and their times."""
    kinds: tuple[Kind, ...] = tuple(SHARES)
    rounds: int = 12
    """Rounds per trial."""
    trials: int = 8
    """Trials per search."""
    tiny: bool = False
    """One seed, and trials of a few steps, for a test in minutes."""
    out: Path = Path("runs/soak")


def main(args: Args) -> int:
    """Return the exit code: 0 if every sweep ended with the numbers of the undisturbed one."""
    if {"memory", "disk"} & {*args.kinds} and here() is None:
        with allowed("--kinds", args.kinds), small_machine(8 * 2**30) as small:
            return small.run([sys.executable, *sys.argv])
    from chaos.sweeps import soaked  # imported here, because it needs Ray and PyTorch

    begin, plan = time.monotonic(), schedule(args.faults, args.seed, args.kinds)
    given = partial(commands, rounds=args.rounds, trials=args.trials, tiny=args.tiny)
    chaos = soaked(given, args.out, plan, args.seed)
    print(f"{chaos} In {time.monotonic() - begin:.0f} s.")
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    command_line(Args, main)
