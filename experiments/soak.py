"""Does a sweep survive whatever its processes die of? Many seeded kills, and the table must be that of a calm run.

Sweeps of the standard ablation on digits follow one another on a cluster of two nodes on this machine, until all kills
are done: of trials, of the pool, of nodes and of the driver, after which the same command is given again. The inversion
asks no student, and trials whose images are equal share them: those that make images for others are killed as well.

    python experiments/soak.py --kills 100 --seed 0
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from chaos import Chaos, machine, schedule

from condkd_ray.commands.experiment import command_line
from condkd_ray.runs.output_folder import open_folder

SWEEP = "--ipcs 1 --seeds 0 1 --condensation random_real --teacher-epochs 5 --arms none mixed guided --share inversion"
ASKS_NOBODY = "inversion: {adv_weight: 0}"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Flags of this experiment."""

    kills: int = 100
    seed: int = 0
    """Of what is killed, and when."""
    rounds: int = 12
    """Of each trial."""
    out: Path = Path("runs/soak")


def main(args: Args) -> int:
    """The exit code: 0 if every sweep ended with the numbers of the calm one."""
    open_folder(args.out, "soak", fresh=args.out.is_dir())
    config = args.out / "config.yaml"
    config.write_text(ASKS_NOBODY, encoding="utf-8")
    flags = [*SWEEP.split(), "--rounds", str(args.rounds), "--config", str(config), "--cache", str(args.out / "cache")]
    begin = time.monotonic()
    with machine() as made:
        command = [sys.executable, str(Path(__file__).with_name("ablate_ipc.py")), *flags, "--address", made.address]
        chaos = Chaos(made, schedule(args.kills, args.seed), args.seed)
        chaos.soak(command, args.out)
    print(f"{chaos} In {time.monotonic() - begin:.0f} s.")
    return 1 if chaos.wrong else 0


if __name__ == "__main__":
    command_line(Args, main)
