"""How much does the cluster cost: a draw, a round, a reader, a sweep, a finished trial?

Each figure is measured several times, together with its reference, and its rows replace the earlier ones in --rows.
Takes about an hour on an idle machine with 2 cores; --figures selects figures.

    python experiments/benchmark_cluster.py --figures draw blocked
    python experiments/benchmark_cluster.py --table
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmark.names import ClusterFigure

from condkd_ray.commands.console.exit_codes import log_line
from condkd_ray.commands.experiment import command_line


@dataclass(frozen=True, kw_only=True)
class Args:
    """Figures to measure, and the file of rows."""

    figures: tuple[ClusterFigure, ...] = get_args(ClusterFigure)
    rows: Path = Path(__file__).with_suffix(".parquet")
    table: bool = False
    """Measure nothing, and print the table of the stored rows, which is also in `condkd_ray/docs/performance.md`."""


def main(args: Args) -> int:
    """Measure, store and print."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from benchmark.cluster import FIGURES
    from benchmark.rows import read, row, store, table

    for figure in () if args.table else args.figures:
        log_line(f"measuring {figure}")
        store(args.rows, figure, [row(figure, measured) for measured in FIGURES[figure]()], list(FIGURES))
    print(table(read(args.rows)), end="")
    return 0


if __name__ == "__main__":
    command_line(Args, main)
