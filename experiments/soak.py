"""Does a sweep survive whatever happens to it? Many seeded faults, and all must come out as in a calm run.

The standard ablation on digits and a small search follow one another on a cluster of two nodes on this machine, until
all faults have struck: killed trials, pools, nodes and drivers, after which the same command is given again; memory
that another program takes until Ray's monitor ends processes; `condkd report` beside; a full disk for TensorBoard; a
torn journal. The ablation's inversion asks no student, and trials whose images are equal share them: those that make
images for others are killed as well. The search draws at random, since what a sampler that learns proposes depends on
which trials have ended by then.

    python experiments/soak.py --faults 100 --seed 0

Faults of memory and disk need the permission to make a control group and to mount (Linux, as root): all then runs in a
control group of 8 GiB, and no other program is hurt. `--kinds` leaves kinds out.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.cluster import machine
from chaos.plan import SHARES, Kind, schedule
from chaos.small_machine import NotAllowed, here, small_machine
from chaos.sweeps import THRESHOLD, Chaos

from condkd_ray.commands.experiment import command_line
from condkd_ray.core.method import InputError
from condkd_ray.runs.output_folder import open_folder

SMALL: tuple[Kind, ...] = ("memory", "disk")
"""Kinds of faults that need a small machine, of so many bytes."""
MEMORY = 8 * 2**30
ABLATION = "--ipcs 1 --condensation random_real --teacher-epochs 5 --arms none mixed guided --share inversion"
ASKS_NOBODY = "inversion: {adv_weight: 0}"
TINY = """
condensation: {name: random_real}
inversion: {width: 16, adv_weight: 0}
distiller: {steps: 20}
"""
SPACE = """
data: {name: digits}
teacher: {network: {name: resnet, depth: 8, width: 8}, training: {epochs: 4}}
student: {name: resnet, depth: 8, width: 4}
condensation: {name: random_real, ipc: 2}
inversion: {name: fast, steps: 5, batch: 64, width: 16, bn_weight: !log_uniform [0.1, 100]}
guidance: !choice
  - {name: discriminator, weight: !log_uniform [1, 100]}
  - none
distiller: {steps: 20, batch: 64, condensed_share: 0.5}
"""


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
    if set(args.kinds) & set(SMALL) and here() is None:
        try:
            with small_machine(MEMORY) as small:
                again = [*small.within, sys.executable, __file__, *sys.argv[1:]]
                return subprocess.run(again, env=os.environ | THRESHOLD).returncode
        except NotAllowed as error:
            others = " ".join(kind for kind in SHARES if kind not in SMALL)
            accepted = f"the permission for it, or others: --kinds {others}"
            raise InputError(f"--kinds is {' '.join(args.kinds)}, but {error}; accepted: {accepted}") from None
    open_folder(args.out, "soak", fresh=args.out.is_dir())
    begin = time.monotonic()
    with machine() as made:
        chaos = Chaos(made, schedule(args.faults, args.seed, args.kinds), args.seed)
        chaos.soak(commands(args, made.address), args.out)
    print(f"{chaos} In {time.monotonic() - begin:.0f} s.")
    return 1 if chaos.wrong else 0


def commands(args: Args, address: str) -> dict[str, Sequence[str]]:
    """The two experiments, without their `--out`."""
    config, space = args.out / "config.yaml", args.out / "space.yaml"
    config.write_text(TINY if args.tiny else ASKS_NOBODY, encoding="utf-8")
    space.write_text(f"{SPACE}rounds: {args.rounds}\n", encoding="utf-8")
    common = ["--cache", str(args.out / "cache"), "--address", address]
    seeds = ["--seeds", "0"] if args.tiny else ["--seeds", "0", "1"]
    flags = [*ABLATION.split(), *seeds, "--rounds", str(args.rounds), "--config", str(config)]
    script = Path(__file__).with_name("ablate_ipc.py")
    search = ["search", str(space), "--trials", str(args.trials), "--sampler", "random"]
    return {
        "ablation": [sys.executable, str(script), *flags, *common],
        "search": [sys.executable, "-m", "condkd_ray", *search, *common],
    }


if __name__ == "__main__":
    command_line(Args, main)
