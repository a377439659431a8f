"""The whole report of a result folder, made again from its records."""

from pathlib import Path

from condkd_ray.report import page, parquet
from condkd_ray.report.figures import accuracy
from condkd_ray.report.results import read
from condkd_ray.report.tables import arms, failures, search, table
from condkd_ray.report.tensorboard import writer as boards


def build(out: Path, tensorboard: bool = True, width: int | None = None) -> str:
    """Rebuild everything from what is stored under `out`; the tables and what failed, as text of so many columns.

    Makes the Parquet files, `table.md`, `table.csv`, `figure.png`, `figure.svg`, `curves.png`, `diagnosis.png`,
    `histograms.png`, `report.html` and `tensorboard/`; of a search `search.md`, `search.csv`, `report.html` and
    `tensorboard/`. Any part of the planned trials will do. Records of trials that the manifest does not plan, as after
    a change of flags, go into the Parquet files alone. Raises `InputError` where `out` is not the folder of an
    experiment.
    """
    results = read(Path(out))
    parquet.write_tables(results)
    tables = search if results.searching else arms
    tables.write(results)
    drawn = None if results.searching else accuracy.write(results.out, results.records, results.manifest)
    if tensorboard:
        boards.rebuild(results.out, results.records)
    page.write(results, drawn)
    wrong = failures.screen(results)
    return tables.terminal_table(results, width or table.WIDTH) + (f"\n{wrong}" if wrong else "")
