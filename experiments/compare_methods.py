"""Which published data-free method teaches a student best, at which cost in time and memory, on which pair of networks?

Each is the whole system of its paper (`condkd_ray/systems.py`), with the same student steps; without condensed images,
or with --condensed each with the same ones mixed in, and each guided too.

    python experiments/compare_methods.py --dataset cifar10 --data-root DIR --pairs wrn-40-2:wrn-16-1 --out runs/methods
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from condkd_ray.arms import arm
from condkd_ray.experiment import Flags, Plan, command_line, run
from condkd_ray.method import InputError
from condkd_ray.systems import SYSTEMS, Name


@dataclass(frozen=True, kw_only=True)
class Args(Flags):
    """Flags of this experiment, and those common to all; of --config a method's own parts are replaced."""

    ipcs: tuple[int, ...] = (10,)
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[Name, ...] = tuple(SYSTEMS)  # type: ignore[assignment]
    pairs: tuple[str, ...] = ()
    """TEACHER:STUDENT, several; --teacher and --student if none is given. Each teacher is trained and cached."""
    condensed: bool = False
    most_steps: int = 20
    """Of an inversion a round: what has more by default gets these."""
    inversion_batch: int | None = None
    out: Path = Path("runs/compare_methods")


def pairs(args: Args) -> Iterator[tuple[str, str]]:
    """Spellings of teachers and students."""
    for pair in args.pairs or (f"{args.teacher}:{args.student}",):
        teacher, found, student = pair.partition(":")
        if not found:
            raise InputError(f"--pairs has {pair!r}; accepted: TEACHER:STUDENT, such as resnet-8-16:resnet-8-8")
        yield teacher, student


def plans(args: Args) -> Iterator[Plan]:
    """Every method for every pair and seed."""
    width = 64 if args.dataset == "digits" else None
    sizes = {"most_steps": args.most_steps, "batch": args.inversion_batch, "width": width}
    names = ("mixed", "guided") if args.condensed else ("none",)
    for (teacher, student), method, seed, who in product(pairs(args), args.methods, args.seeds, names):
        base = replace(args, teacher=teacher, student=student).base()
        label = " ".join([*[who] * args.condensed, method, *[f"({teacher} to {student})"] * (len(args.pairs) > 1)])
        yield arm(SYSTEMS[method].into(base, **sizes), who, max(args.ipcs), seed, label)


if __name__ == "__main__":
    command_line(Args, lambda args: run("compare_methods", __doc__ or "", plans(args), args, baseline="fast"))
