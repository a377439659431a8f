"""With a few real images per class instead of condensed ones: does guidance help, and does a curriculum?

`mixed`, `mixed_prior` and `guided` as in ablate_ipc.py, with random real train images. Their `_curriculum` variants
start with mostly real batches and end with mostly synthetic ones (PGDI's schedule); the weight of guidance falls alike,
that of the class prior stays. The student takes the same number of steps in all arms.

    python experiments/few_shot.py --dataset cifar10 --data-root DIR --ipcs 5 10 --out runs/few_shot_cifar10
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run
from condkd_ray.core.method import Schedule

if TYPE_CHECKING:
    from condkd_ray.trial.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    ipcs: tuple[int, ...] = (1, 10)
    """Real images (shots) per class."""
    condensation: str = "random_real"
    early: float = 0.9
    """Share of real images in a batch in the curriculum's first round, as in PGDI."""
    late: float = 0.2
    """Share of real images from the middle of the rounds on, as in PGDI."""
    out: Path = Path("runs/few_shot")


def with_curriculum(base: "TrialConfig", args: Args) -> "TrialConfig":
    """Return the base config with a falling share of real images and a falling weight of guidance."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.methods.guidance import NoGuidance

    fall = Schedule(end=args.late / args.early)
    distiller = replace(base.distiller, condensed_share=args.early, share_schedule=fall)
    unguided = isinstance(base.guidance, NoGuidance)
    guidance = base.guidance if unguided else replace(base.guidance, schedule=fall)
    return replace(base, distiller=distiller, guidance=guidance)


def plans(args: Args) -> Plans:
    """Yield every trial; `none` runs once per seed."""
    base, mixing = args.base(), args.mixing
    curriculum = with_curriculum(base, args)
    yield from (arm(base, "none", 0, seed) for seed in args.seeds)
    for ipc, seed in product(args.ipcs, args.seeds):
        yield arm(base, "condensed_only", ipc, seed)
        yield from (arm(base, name, ipc, seed, prior=args.prior) for name in mixing)
        yield from (arm(curriculum, name, ipc, seed, f"{name}_curriculum", prior=args.prior) for name in mixing)


if __name__ == "__main__":
    command_line(Args, lambda args: run("few_shot", __doc__ or "", plans(args), args, baseline="mixed"))
