"""Does a learning sampler find good configs sooner than random draws?

Each seed starts with random trials that all its searches share; then each sampler continues alone. Compared are the
best value of the objective so far, trial by trial, and the test accuracy of the trial with the best value.

    python experiments/compare_samplers.py --trials 40 --rounds 6 --sampler-seeds 0 1 2 3 4
"""

from dataclasses import dataclass, replace
from pathlib import Path

from condkd_ray.commands.experiment import command_line
from condkd_ray.commands.search import SearchFlags, run
from condkd_ray.core.method import require
from condkd_ray.study.choices import Sampler


@dataclass(frozen=True, kw_only=True)
class Args(SearchFlags):
    """Flags of these searches, and the common ones."""

    space: Path = Path(__file__).parents[1] / "search_spaces" / "guidance.yaml"
    samplers: tuple[Sampler, ...] = ("random", "tpe")
    """Samplers to compare with the first one."""
    sampler_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    first: int = 10
    """Random trials that the searches of a seed share, included in `trials`."""
    trials: int = 40
    rounds: int = 12
    out: Path = Path("runs/compare_samplers")


def searches(args: Args, seed: int, out: Path) -> list[SearchFlags]:
    """Return the shared start of a seed, then the searches that continue from it."""
    from condkd_ray.study.storage import JOURNAL

    first = replace(args, sampler="random", sampler_seed=seed, trials=args.first, out=out / "first")
    known = f"{first.out / JOURNAL}#{args.study}"
    rest = replace(args, sampler_seed=seed, trials=args.trials - args.first, learn_from=(known,))
    return [first, *(replace(rest, sampler=name, out=out / name) for name in args.samplers)]


def main(args: Args) -> int:
    """Run the searches, then compare them."""
    from condkd_ray.report.figures.samplers import compare  # imported here, so that help does not wait for PyTorch
    from condkd_ray.study.space import read

    require(1 <= args.first < args.trials, "--first", args.first, f"1 to {args.trials - 1}")
    tree, seeds = read(args.space) | {"rounds": args.rounds}, args.sampler_seeds
    places = [args.out / f"seed-{seed}" for seed in seeds]
    every = (flags for seed, out in zip(seeds, places, strict=True) for flags in searches(args, seed, out))
    code = next(filter(None, (run(str(flags.out), tree, flags) for flags in every)), 0)
    if not (code or args.explain):
        folders = {name: [[out / "first", out / name] for out in places] for name in args.samplers}
        print(compare(args.out, folders, args.first, args.parsed_objective))
    return code


if __name__ == "__main__":
    command_line(Args, main)
