"""How few synthetic images suffice: do priorities and modulated losses (SSD-KD) compensate for a small memory?

`growing` keeps every image. At each scale, a share of the train set, `reservoir` keeps a uniform sample of all images,
`prioritized` prefers images on which student and teacher differ most, and `modulated` also weights the losses of the
inversion by class balance and difficulty. Data-free, with the same number of student steps in all arms.

    python experiments/ablate_scale.py --scales 0.1 0.01 --dataset cifar10 --data-root DIR --out runs/scale_cifar10
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones. No arm uses condensed images."""

    scales: tuple[float, ...] = (0.5, 0.2)
    """Numbers of images kept, as shares of the train set. SSD-KD uses 0.1 and 0.01 of CIFAR-10; a tenth of digits is
    less than one round's images."""
    gamma: float = 2.0
    """Exponent of the difficulty in the modulated losses."""
    out: Path = Path("runs/ablate_scale")


def plans(args: Args) -> Plans:
    """Yield every memory at every scale for every seed."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.data.datasets import load
    from condkd_ray.methods.memory import Growing, Prioritized, Reservoir
    from condkd_ray.methods.weighing import Equal, Modulating

    base = replace(args.base(), weighing=Equal())
    size = len(load(base.data).train)
    yield from (arm(replace(base, memory=Growing()), "none", 0, seed, "growing") for seed in args.seeds)
    for scale, seed in product(args.scales, args.seeds):
        small = replace(base, memory=Prioritized(scale=scale))
        fair = replace(base, memory=Reservoir(capacity=round(scale * size)))
        modulated = replace(small, weighing=Modulating(gamma=args.gamma))
        for name, config in (("reservoir", fair), ("prioritized", small), ("modulated", modulated)):
            yield arm(config, "none", 0, seed, f"{name} {scale:g}")


def baselines(args: Args) -> dict[str, str]:
    """Return the baseline of each arm: the arm with one component less."""
    steps = (("reservoir {}", "growing"), ("prioritized {}", "reservoir {}"), ("modulated {}", "prioritized {}"))
    return {arm.format(f"{s:g}"): before.format(f"{s:g}") for s in args.scales for arm, before in steps}


if __name__ == "__main__":
    command_line(Args, lambda args: run("ablate_scale", __doc__ or "", plans(args), args, baseline=baselines(args)))
