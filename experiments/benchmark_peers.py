"""How fast is this package on a CPU, compared with the released code of Fast, CMI and NAYER, and with its convolutions?

Each figure needs a checkout of that code, `git clone https://github.com/zju-vipa/Fast-Datafree` (at 0dcecbc),
`zju-vipa/CMI` (9e79fa9), `tmtuan1307/NAYER` (c6bedcd), and its requirements: `pip install kornia termcolor tqdm
xlsxwriter`. That code is not changed, and is not part of this project. Takes about 20 minutes on an idle core.

    python experiments/benchmark_peers.py --fast Fast-Datafree --cmi CMI --nayer NAYER
    python experiments/benchmark_peers.py --table
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmark.names import PeerFigure

from condkd_ray.commands.console.exit_codes import log_line
from condkd_ray.commands.experiment import command_line
from condkd_ray.core.method import require


@dataclass(frozen=True, kw_only=True)
class Args:
    """Figures to measure, checkouts, and the file of rows."""

    fast: Path | None = None
    cmi: Path | None = None
    nayer: Path | None = None
    figures: tuple[PeerFigure, ...] = get_args(PeerFigure)
    """Figures to measure; those without a checkout are left out."""
    rows: Path = Path(__file__).with_suffix(".parquet")
    table: bool = False
    """Measure nothing, and print the table of the stored rows, which is also in `condkd_ray/docs/performance.md`."""


def main(args: Args) -> int:
    """Check the checkouts, measure, store and print."""
    # Imported here, so that help and wrong flags do not wait for PyTorch.
    from benchmark.checkouts import Name, check
    from benchmark.peers import FIGURES, PACKAGES
    from benchmark.rows import processor, read, row, store, table

    given: dict[Name, Path | None] = {"fast": args.fast, "cmi": args.cmi, "nayer": args.nayer}
    wanted: tuple[PeerFigure, ...] = () if args.table else args.figures
    checkouts: dict[PeerFigure, Path] = {figure: path for figure in wanted if (path := given[FIGURES[figure][0]])}
    needed = " or ".join(dict.fromkeys(f"--{FIGURES[figure][0]} CHECKOUT" for figure in wanted))
    found = [f"--{name}" for name, path in given.items() if path]
    require(args.table or bool(checkouts), f"checkouts for {' '.join(wanted)}", found, f"{needed}; or --table")
    for figure, checkout in checkouts.items():
        check(FIGURES[figure][0], checkout)
    for figure in wanted:
        name, measure = FIGURES[figure]
        log_line(f"measuring {figure}" if figure in checkouts else f"{figure} is left out: it needs --{name} CHECKOUT")
        if figure in checkouts:
            rows = [row(figure, one, processor=processor(), packages=PACKAGES) for one in measure(checkouts[figure])]
            store(args.rows, figure, rows, list(FIGURES))
    print(table(read(args.rows)), end="")
    return 0


if __name__ == "__main__":
    command_line(Args, main)
