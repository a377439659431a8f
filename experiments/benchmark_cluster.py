"""What does the cluster cost: a draw, a round, a reader, a sweep, a trial that does nothing?

Each figure is measured several times side by side with what it is compared with, and its rows replace those of before
in --rows. About 25 minutes on an idle machine of 2 cores; figure by figure with --figures.

    python experiments/benchmark_cluster.py --figures draw blocked
    python experiments/benchmark_cluster.py --table
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmark.names import ClusterFigure

from condkd_ray.commands.console.exit_codes import say
from condkd_ray.commands.experiment import command_line


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure, and where the rows are."""

    figures: tuple[ClusterFigure, ...] = get_args(ClusterFigure)
    rows: Path = Path(__file__).with_suffix(".parquet")
    table: bool = False
    """Measure nothing: print the table of the stored rows, which is in `condkd_ray/docs/performance.md`."""


def main(args: Args) -> int:
    """Measure, store, print."""
    # Here, so that help and wrong flags do not wait for PyTorch.
    from benchmark.figures import FIGURES
    from benchmark.rows import read, row, store, table

    for figure in () if args.table else args.figures:
        say(f"measuring {figure}")
        store(args.rows, figure, [row(figure, measured) for measured in FIGURES[figure]()], list(FIGURES))
    print(table(read(args.rows)), end="")
    return 0


if __name__ == "__main__":
    command_line(Args, main)
