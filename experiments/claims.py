"""Do the claims of this project hold? Runs what is missing of the trials behind experiments/claims/*.yaml.

    python experiments/claims.py --data-root DIR --time-budget 2h core
    python experiments/claims.py --list

DIR holds `cifar10`, `FashionMNIST` and others' condensed sets in `condensed`. Rows are kept in experiments/results, a
file a claim. Interrupted, killed or out of time, the same command goes on, on this machine or another.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condkd_ray.commands.experiment import command_line
from condkd_ray.runs.options import Options

HERE = Path(__file__).parent
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Args(Options):
    """Which claims, where data and rows lie, and what trials take of this machine."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Claims to run, in their own order; all if none is named."""
    data_root: Path | None = None
    """Folder that holds the folders `cifar10`, `FashionMNIST` and `condensed`."""
    lists: Annotated[Flag, tyro.conf.arg(name="list")] = False
    """Tell what there is, what is missing, what is stale and what that takes. Nothing is run."""
    writes: Annotated[Flag, tyro.conf.arg(name="write")] = False
    """Render the blocks between markers in --texts from the stored rows. Nothing is run."""
    checks: Annotated[Flag, tyro.conf.arg(name="check")] = False
    """Exit with 1 and a diff where such a block does not match the stored rows. Nothing is run."""
    only_seeds: tuple[int, ...] = ()
    only_cells: tuple[str, ...] = ()
    """Cells, or candidates of a claim that chooses."""
    claims: Path = HERE / "claims"
    results: Path = HERE / "results"
    texts: tuple[Path, ...] = (HERE.parent / "README.md", HERE / "LOG.md")
    out: Path = Path("runs/claims")

    @property
    def explain(self) -> bool:
        """Whether nothing is run, so that another process may run in `out`."""
        return self.lists or self.writes or self.checks


def main(args: Args) -> int:
    """The exit code: of --check 1 where a file does not match, else that of an experiment."""
    from campaign.command import done  # here, so that help does not wait for PyTorch

    return done(args)


if __name__ == "__main__":
    command_line(Args, main)
