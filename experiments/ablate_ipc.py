"""How much does guiding the inversion with a few condensed images per class (IPC) help the student?

Against not using them (`none`), distilling from them alone (`condensed_only`), merely mixing them into the distillation
batches (`mixed`), and mixing with the class prior that `guided` has too (`mixed_prior`): what guided is above that, the
guides alone give. `real`, KD on all real data, is a reference. Every arm takes the same student steps.

    python experiments/ablate_ipc.py --dataset cifar10 --data-root DIR --ipcs 1 10 --seeds 0 1 2 --out runs/cifar10
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run
from condkd_ray.runs.arms import ONCE, Arm

ARMS: tuple[Arm, ...] = ("none", "condensed_only", "mixed", "mixed_prior", "guided")


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all."""

    arms: tuple[Arm, ...] | None = None
    """none, condensed_only, mixed, mixed_prior (not at --prior-weight 0) and guided if not given. guided_only keeps the
    condensed images out of the student's batches."""
    reference: bool = True
    """Also distil from all real data, once per seed."""
    out: Path = Path("runs/ablate_ipc")


def plans(args: Args) -> Plans:
    """Every trial of the ablation; those without condensed images once per seed."""
    base, arms = args.base(), args.arms_or(args.arms, ARMS)
    named = dict.fromkeys([*arms, *["real"] * args.reference])
    once = [(name, [0]) for name in ONCE if name in named]
    rest = [(name, args.ipcs) for name in arms if name not in ONCE]
    for name, ipcs in [*once, *rest]:
        yield from (arm(base, name, ipc, seed, prior=args.prior) for ipc, seed in product(ipcs, args.seeds))


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_ipc", __doc__ or "", plans(args), args))
