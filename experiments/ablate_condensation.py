"""Which condensed images help the student most, alone, mixed in and as guides; do they exceed as many real ones?

Compares every condenser with the control `random_real` of equal size, which separates the effect of condensing from the
effect of having any images. The student takes the same number of steps in all arms.

    python experiments/ablate_condensation.py --dataset cifar10 --data-root DIR --ipcs 1 10 --out runs/condensation
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run

NAMES = (
    *("random_real", "herding", "distribution_matching", "gradient_matching", "trajectory_matching"),
    "squeeze_recover",
)
Served = Literal["condensed_only", "mixed", "mixed_prior", "guided"]
"""Arms that use condensed images."""


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones except --condensation."""

    ipcs: tuple[int, ...] = (10,)
    seeds: tuple[int, ...] = (0, 1, 2)
    condensers: tuple[str, ...] | None = None
    """`random_real` is always added; `imported` needs --condensed-path. Default: all others that fit the task."""
    arms: tuple[Served, ...] | None = None
    """All four by default; at --prior-weight 0 without mixed_prior."""
    out: Path = Path("runs/ablate_condensation")


def plans(args: Args) -> Plans:
    """Yield every arm with every condensed set; ablate_ipc.py runs the arm `none`."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.data.datasets import task_of
    from condkd_ray.methods.condensation import CONDENSATIONS

    fitting = [name for name in NAMES if task_of(args.dataset) in CONDENSATIONS.members()[name].tasks]
    condensers = fitting if args.condensers is None else args.condensers
    names, arms = dict.fromkeys(["random_real", *condensers]), args.arms_or(args.arms, get_args(Served))
    path = {"imported": args.condensed_path}
    bases = {name: replace(args, condensation=name, condensed_path=path.get(name)).base() for name in names}
    for name, ipc, seed, arm_name in product(names, args.ipcs, args.seeds, arms):
        yield arm(bases[name], arm_name, ipc, seed, f"{arm_name} {name}", prior=args.prior)


def main(args: Args) -> int:
    """Run the trials, and compare each condenser with the control in the same arm."""
    planned = list(plans(args))
    control = {plan.arm: f"{plan.arm.split()[0]} random_real" for plan in planned}
    return run("ablate_condensation", __doc__ or "", planned, args, baseline=control)


if __name__ == "__main__":
    command_line(Args, main)
