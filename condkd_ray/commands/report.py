"""`condkd report`: tables, figures and page of a result folder made anew, or a page that compares two."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from condkd_ray.commands.console.results import tell_results
from condkd_ray.core.method import require


@dataclass(frozen=True)
class Report:
    """Rebuild tables, figures, page, Parquet and TensorBoard files of a result folder from what is stored there.

    Of two folders: one page that compares them, trials of equal arm, IPC and seed side by side; nothing else changes.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment or a search."""
    other: tyro.conf.Positional[Path | None] = None
    """Another's on the same data set, that is compared with the first."""
    to: Path | None = None
    """File of the comparison; `comparison.html` in the first folder if not given."""


def rebuild(command: Report) -> int:
    """`condkd report`."""
    if command.other is not None:
        # It draws, which the other commands need not wait for.
        from condkd_ray.report import page

        print(page.compare(command.out, command.other, command.to))
        return 0
    require(command.to is None, "--to", str(command.to), "with two folders; that of one is report.html in it")
    tell_results(command.out)
    return 0
