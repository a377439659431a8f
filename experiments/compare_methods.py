"""Which published data-free method trains the best student, at which cost in time and memory, on which networks?

Each runs as its paper's whole system at one --scale, and again with the CPU time of `fast`.

    python experiments/compare_methods.py --dataset cifar10 --data-root DIR --pairs wrn-40-2/wrn-16-1 --equal proportion
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from condkd_ray.commands.experiment import Flags, Plans, arm, command_line, run
from condkd_ray.core.method import require
from condkd_ray.runs.arms import Arm, arm_label, network_pairs
from condkd_ray.runs.presets import NAMES, Name, equal_rounds, with_rounds


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and the common ones."""

    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Name, ...] = NAMES
    scale: float | None = 0.003
    equal: tuple[Literal["proportion", "seconds"], ...] = ("proportion", "seconds")
    rounds_file: Path = Path(__file__).parent / "results" / "equal_seconds.yaml"
    pairs: tuple[str, ...] = ()
    """Pairs TEACHER/STUDENT; --teacher and --student by default."""
    condensed: bool = False
    """Run the arms mixed, mixed_prior and guided instead of none."""
    out: Path = Path("runs/compare_methods")


def plans(args: Args) -> Plans:
    """Yield every method for every pair and seed."""
    require(args.host is args.inversion is None, "--host or --inversion", args.host or args.inversion, "--methods")
    arms: tuple[Arm, ...] = args.mixing if args.condensed else ("none",)
    pairs = network_pairs(args.pairs, args.teacher_label, args.student_label).items()
    for (pair, ends), method, arm_name, how in product(pairs, args.methods, arms, args.equal):
        base = replace(args, host=method, **ends).base()
        config = base if how == "proportion" else with_rounds(base, equal_rounds(args.rounds_file, args, ends, method))
        if how == "proportion" or config != base or len(args.equal) == 1:
            label = arm_label(method, pair, timed=config != base, arm=arm_name * args.condensed)
            yield from (arm(config, arm_name, max(args.ipcs), seed, label, prior=args.prior) for seed in args.seeds)


def main(args: Args) -> int:
    """Run the trials; methods are compared with `fast` (or the first), guided ones with their unguided selves."""
    first, mixed, against = "fast" if "fast" in args.methods else args.methods[0], "mixed" * args.condensed, {}
    pairs = network_pairs(args.pairs, args.teacher_label, args.student_label)
    for pair, method, timed in product(pairs, args.methods, (False, True)):
        own = arm_label(method, pair, timed=timed, arm=mixed)
        against[arm_label(method, pair, timed=timed, arm="guided")] = own
        against[own] = arm_label(first, pair, timed=timed and first != "fast", arm=mixed)
    return run("compare_methods", __doc__ or "", plans(args), args, baseline=against)


if __name__ == "__main__":
    command_line(Args, main)
