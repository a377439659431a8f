"""The whole report of a result folder, made again from its records."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from condkd_ray.core.dispensable import dispensable
from condkd_ray.core.locks import kept
from condkd_ray.core.method import InputError
from condkd_ray.report import page, parquet
from condkd_ray.report.figures import accuracy
from condkd_ray.report.results import Results, read
from condkd_ray.report.tables import arms, failures, search, table
from condkd_ray.report.tensorboard import writer as boards


def build(out: Path, tensorboard: bool = True, width: int | None = None) -> str:
    """Rebuild everything from what is stored under `out`; the tables and what failed, as text of so many columns.

    Makes the Parquet files, `table.md`, `table.csv`, `figure.png`, `figure.svg`, `curves.png`, `diagnosis.png`,
    `histograms.png`, `report.html` and `tensorboard/`; of a search `search.md`, `search.csv`, `report.html` and
    `tensorboard/`. Any part of the planned trials will do. Records of trials that the manifest does not plan, as after
    a change of flags, go into the Parquet files alone. What cannot be written is told, and left out.

    Where another process runs in `out`, what is made is marked as interim. `tensorboard/` is that process's own and
    stays as it is; all other files are replaced whole, and made again at its end. Until this returns no other process
    can begin there. Raises `InputError` where `out` is not the folder of an experiment.
    """
    out = Path(out)
    with kept(out) as alone:
        results = read(out)
        _write(results, tensorboard=tensorboard and alone)
    tables = search if results.searching else arms
    wrong = failures.screen(results)
    return tables.terminal_table(results, width or table.WIDTH) + (f"\n{wrong}" if wrong else "")


def _write(results: Results, *, tensorboard: bool) -> None:
    """Each part by itself: the others are made also where one cannot be."""
    remedy, tables = f"condkd report {results.out} makes it anew", search if results.searching else arms
    with dispensable("Parquet files", remedy, InputError):
        parquet.write_tables(results)
    with dispensable("tables", remedy, InputError):
        tables.write(results)
    drawn: Mapping[str, Figure | None] | None = None
    if not results.searching:
        drawn = dict.fromkeys(accuracy.FIGURES)
        with dispensable("figures", remedy, InputError):
            drawn = accuracy.draw(results.records, results.manifest)
            accuracy.save(results.out, drawn)
    if tensorboard:
        with dispensable("TensorBoard files", remedy, InputError):
            boards.rebuild(results.out, results.records)
    with dispensable("page", remedy, InputError):
        page.write(results, drawn)
