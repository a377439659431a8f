"""Does a sweep survive whatever happens to it? Many seeded faults, and all must come out as in a calm run.

An ablation and a search follow one another on a cluster of two nodes on this machine, until all faults have struck:
killed trials, pools, nodes and drivers, after which the same command is given again; memory that another program takes
until Ray's monitor ends processes; `condkd report` beside; a full disk for TensorBoard; a torn journal.

    python experiments/soak.py --faults 100 --seed 0

Memory and disk need the permission to make a control group and to mount (Linux, as root): all then runs in a control
group of 8 GiB, and no other program is hurt. `--kinds` leaves kinds out.
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
    """Of what strikes, and when."""
    kinds: tuple[Kind, ...] = tuple(SHARES)
    rounds: int = 12
    """Of each trial."""
    trials: int = 8
    """Of each search."""
    tiny: bool = False
    """One seed, and trials of a few steps: a try in minutes."""
    out: Path = Path("runs/soak")


def main(args: Args) -> int:
    """The exit code: 0 if every sweep ended with the numbers of the calm one."""
    if {"memory", "disk"} & {*args.kinds} and here() is None:
        with allowed("--kinds", args.kinds), small_machine(8 * 2**30) as small:
            return small.run([sys.executable, *sys.argv])
    from chaos.sweeps import soaked  # which needs Ray and PyTorch

    begin, plan = time.monotonic(), schedule(args.faults, args.seed, args.kinds)
    given = partial(commands, rounds=args.rounds, trials=args.trials, tiny=args.tiny)
    chaos = soaked(given, args.out, plan, args.seed)
    print(f"{chaos} In {time.monotonic() - begin:.0f} s.")
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    command_line(Args, main)
