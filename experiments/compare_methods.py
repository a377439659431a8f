"""Which published data-free method teaches a student best, at which cost in time and memory, on which pair of networks?

Each is the whole system of its paper (`condkd_ray/systems.py`), with the same student steps; without condensed images,
or with --condensed each with the same ones mixed in, and each guided too.

    python experiments/compare_methods.py --dataset cifar10 --data-root DIR --pairs wrn-40-2/wrn-16-1 --out runs/methods
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from condkd_ray.arms import arm
from condkd_ray.experiment import Flags, Plan, command_line, run
from condkd_ray.method import require
from condkd_ray.systems import SYSTEMS, Name


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all; of --config a method's own parts are replaced."""

    ipcs: tuple[int, ...] = (10,)
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Name, ...] = tuple(SYSTEMS)  # type: ignore[assignment]
    pairs: tuple[str, ...] = ()
    """TEACHER/STUDENT, several; --teacher and --student if none is given."""
    condensed: bool = False
    most_steps: int = 20
    """Of an inversion a round: what has more by default gets these."""
    out: Path = Path("runs/compare_methods")


def _label(args: Args, pair: str, method: str, who: str) -> str:
    return " ".join([*[who] * args.condensed, method, *[f"({pair})"] * (len(args.pairs) > 1)])


def plans(args: Args) -> Iterator[Plan]:
    """Every method for every pair and seed."""
    sizes = {"most_steps": args.most_steps, "width": 64 if args.dataset == "digits" else None}
    names = ("mixed", "guided") if args.condensed else ("none",)
    for pair, method, seed, who in product(args.pairs or ("",), args.methods, args.seeds, names):
        ends = pair.split("/") if pair else [args.teacher, args.student]
        require(len(ends) == 2, "--pairs", pair, "TEACHER/STUDENT, such as resnet-8-16/resnet-8-8")
        base = replace(args, teacher=ends[0], student=ends[1]).base()
        yield arm(SYSTEMS[method].into(base, **sizes), who, max(args.ipcs), seed, _label(args, pair, method, who))


def main(args: Args) -> int:
    """Methods are read against `fast` (or the first), guided ones against themselves unguided."""
    first = "fast" if "fast" in args.methods else args.methods[0]
    every = list(product(args.pairs or ("",), args.methods))
    against = {_label(args, p, m, "mixed"): _label(args, p, first, "mixed") for p, m in every if m != first}
    against |= {_label(args, p, m, "guided"): _label(args, p, m, "mixed") for p, m in every if args.condensed}
    return run("compare_methods", __doc__ or "", plans(args), args, baseline=against)


if __name__ == "__main__":
    command_line(Args, main)
