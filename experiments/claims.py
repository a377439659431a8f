"""Do the claims of this project hold? Runs the missing trials of experiments/claims/*.yaml.

    python experiments/claims.py --data-root DIR --time-budget 2h core
    python experiments/claims.py --list

DIR contains `cifar10`, `FashionMNIST`, `camvid`, and published condensed sets in `condensed`. Rows are stored in
experiments/results, one file per claim. After an interruption the same command continues, also on another machine.
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
    """Claims to run, folders of data and rows, and resources of trials."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Claims to run, by their `order`; all if none is named."""
    data_root: Path | None = None
    """Folder that contains the folders `cifar10`, `FashionMNIST`, `camvid` and `condensed`."""
    lists: Annotated[Flag, tyro.conf.arg(name="list")] = False
    """Print existing, missing and stale rows and the estimated time, without running trials."""
    writes: Annotated[Flag, tyro.conf.arg(name="write")] = False
    """Render the blocks between markers in --texts from the stored rows, without running trials."""
    checks: Annotated[Flag, tyro.conf.arg(name="check")] = False
    """Print a diff and exit with 1 if such a block does not match the stored rows, without running trials."""
    only_seeds: tuple[int, ...] = ()
    only_cells: tuple[str, ...] = ()
    """Cells, or candidates of a choosing claim."""
    claims: Path = HERE / "claims"
    results: Path = HERE / "results"
    texts: tuple[Path, ...] = (HERE.parent / "README.md", HERE / "LOG.md")
    out: Path = Path("runs/claims")

    @property
    def explain(self) -> bool:
        """True if nothing is run, so that another process may run in `out`."""
        return self.lists or self.writes or self.checks


def main(args: Args) -> int:
    """Return the exit code: for --check, 1 if a file does not match; otherwise that of the trials."""
    from campaign.command import done  # imported here, so that help does not wait for PyTorch

    return done(args)


if __name__ == "__main__":
    command_line(Args, main)
