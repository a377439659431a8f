"""Which guidance, with which weights and how many inversion steps, teaches best with a few condensed images per class?

Optuna proposes configs of the space; agreement with the teacher on the proxy set decides. Then the best, the same
without guides, and the default are run again with seeds that the search has not seen: the claim is paired differences.

    python experiments/search_guidance.py --trials 24 --pruner asha
"""

from dataclasses import dataclass
from pathlib import Path

from condkd_ray.commands.experiment import command_line
from condkd_ray.commands.search import SearchFlags, confirm, run


@dataclass(frozen=True, kw_only=True)
class Args(SearchFlags):
    """Flags of this search, and those common to all."""

    space: Path = Path(__file__).parents[1] / "search_spaces" / "guidance.yaml"
    """A YAML file of a config with open leaves."""
    best: int = 3
    """So many of the best trials are run again, with and without their guidance, beside the default."""
    new_seeds: tuple[int, ...] = (100, 101, 102)
    out: Path = Path("runs/search_guidance")


def main(args: Args) -> int:
    """Search, then confirm."""
    # Here, so that help and wrong flags do not wait for PyTorch.
    from condkd_ray.study.space import read

    tree = read(args.space)
    code = run((__doc__ or "").split("\n")[0], tree, args)
    return code or confirm(tree, args, best=args.best, seeds=args.new_seeds)


if __name__ == "__main__":
    command_line(Args, main)
