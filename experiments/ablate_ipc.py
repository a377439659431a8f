"""How much does guiding the inversion with a few condensed images per class (IPC) help the student?

Compares guidance with not using the images (`none`), distilling from them alone (`condensed_only`), mixing them into
the batches (`mixed`), and mixing with the class prior of `guided` (`mixed_prior`), which isolates the effect of the
guides. `real`, distillation from all real data, is a reference. All arms take the same number of student steps.

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
    """Flags of this experiment, and the common ones."""

    arms: tuple[Arm, ...] | None = None
    """By default none, condensed_only, mixed, mixed_prior (not at --prior-weight 0) and guided. guided_only leaves the
    condensed images out of the student's batches."""
    reference: bool = True
    """Also distil from all real data, once per seed."""
    out: Path = Path("runs/ablate_ipc")


def plans(args: Args) -> Plans:
    """Yield every trial of the ablation; arms without condensed images run once per seed."""
    base, arms = args.base(), args.arms_or(args.arms, ARMS)
    named = dict.fromkeys([*arms, *["real"] * args.reference])
    once = [(name, [0]) for name in ONCE if name in named]
    rest = [(name, args.ipcs) for name in arms if name not in ONCE]
    for name, ipcs in [*once, *rest]:
        yield from (arm(base, name, ipc, seed, prior=args.prior) for ipc, seed in product(ipcs, args.seeds))


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_ipc", __doc__ or "", plans(args), args))
