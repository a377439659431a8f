"""Which published data-free method teaches a student best, at which cost in time and memory, on which pair of networks?

Each is the whole system of its paper (`condkd methods --published`), once at the same share of its length, --scale, and
once in as many rounds as take as long as those of `fast` (equal_seconds.py; where that is as many, one trial is
both). Without condensed images, or with --condensed each mixed with the same ones, and guided too.

    python experiments/compare_methods.py --dataset cifar10 --data-root DIR --pairs wrn-40-2/wrn-16-1 --equal proportion
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from condkd_ray.arms import arm
from condkd_ray.experiment import Flags, Plan, command_line, run
from condkd_ray.method import require
from condkd_ray.systems import NAMES, Name, equal_rounds, with_rounds


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all."""

    ipcs: tuple[int, ...] = (10,)
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Name, ...] = NAMES
    scale: float | None = 0.003
    equal: tuple[Literal["proportion", "seconds"], ...] = ("proportion", "seconds")
    rounds_file: Path = Path(__file__).parent / "results" / "equal_seconds.yaml"
    pairs: tuple[str, ...] = ()
    """TEACHER/STUDENT, several; --teacher and --student if none is given."""
    condensed: bool = False
    out: Path = Path("runs/compare_methods")


def _label(args: Args, pair: str, method: str, timed: bool, who: str = "mixed") -> str:
    parts = [*[who] * args.condensed, method, *[f"({pair})"] * (len(args.pairs) > 1)]
    return " ".join([*parts, *["in equal time"] * timed])


def _pairs(args: Args) -> tuple[str, ...]:
    return args.pairs or (f"{args.teacher}/{args.student}",)


def plans(args: Args) -> Iterator[Plan]:
    """Every method for every pair and seed."""
    require(args.host is args.inversion is None, "--host or --inversion", args.host or args.inversion, "--methods")
    if "seconds" in args.equal:
        unmeasured = args.condensed or args.config or args.size or "fast" not in args.methods
        accepted = "fast among --methods, and neither --condensed, --config nor --size; or --equal proportion"
        require(not unmeasured, "--equal seconds", args.equal, accepted)
    for pair, method, who, how in product(
        _pairs(args), args.methods, ("mixed", "guided") if args.condensed else ("none",), args.equal
    ):
        teacher, _, student = pair.partition("/")
        require(bool(student), "--pairs", pair, "TEACHER/STUDENT, such as resnet-8-16/resnet-8-8")
        config = replace(args, teacher=teacher, student=student, host=method).base()
        measured = {"dataset": args.dataset, "teacher": teacher, "student": student, "scale": args.scale}
        rounds = equal_rounds(args.rounds_file, measured, method) if how == "seconds" else config.rounds
        if how == "proportion" or rounds != config.rounds or len(args.equal) == 1:
            label = _label(args, pair, method, rounds != config.rounds, who)
            yield from (arm(with_rounds(config, rounds), who, max(args.ipcs), seed, label) for seed in args.seeds)


def main(args: Args) -> int:
    """Methods are read against `fast` (or the first), guided ones against themselves unguided."""
    first, every = "fast" if "fast" in args.methods else args.methods[0], (_pairs(args), args.methods, (False, True))
    against = {_label(args, p, m, timed): _label(args, p, first, False) for p, m, timed in product(*every)}
    against |= {_label(args, *one, "guided"): _label(args, *one) for one in product(*every) if args.condensed}
    return run("compare_methods", __doc__ or "", plans(args), args, baseline=against)


if __name__ == "__main__":
    command_line(Args, main)
