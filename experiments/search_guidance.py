"""Which guidance, with which weights and inversion steps, trains the best student with few condensed images per class?

Optuna proposes configs of the space and ranks them by agreement with the teacher on the proxy set. Then the best ones,
the same without guides, and the default run with new seeds; the result is their paired differences.

    python experiments/search_guidance.py --trials 24 --pruner asha
"""

from dataclasses import dataclass
from pathlib import Path

from condkd_ray.commands.experiment import command_line
from condkd_ray.commands.search import SearchFlags, confirm, run


@dataclass(frozen=True, kw_only=True)
class Args(SearchFlags):
    """Flags of this search, and the common ones."""

    space: Path = Path(__file__).parents[1] / "search_spaces" / "guidance.yaml"
    """A YAML file of a config with open leaves."""
    best: int = 3
    """Number of best trials that run again, with and without their guidance, in addition to the default."""
    new_seeds: tuple[int, ...] = (100, 101, 102)
    out: Path = Path("runs/search_guidance")


def main(args: Args) -> int:
    """Run the search, then the confirming trials."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.study.space import read

    tree = read(args.space)
    code = run((__doc__ or "").split("\n")[0], tree, args)
    return code or confirm(tree, args, best=args.best, seeds=args.new_seeds)


if __name__ == "__main__":
    command_line(Args, main)
