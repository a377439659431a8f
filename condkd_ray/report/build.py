"""The whole report of a result folder, made again from its records."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure

from condkd_ray.core.dispensable import dispensable
from condkd_ray.core.locks import in_turn, kept
from condkd_ray.core.method import InputError
from condkd_ray.report import page, parquet
from condkd_ray.report.figures import accuracy
from condkd_ray.report.results import Results, read
from condkd_ray.report.tables import arms, failures, search, table
from condkd_ray.report.tensorboard import writer as boards


def build(out: Path, tensorboard: bool = True, width: int | None = None, failed: list[Exception] | None = None) -> str:
    """Rebuild everything from what is stored under `out`; the tables and what failed, as text of so many columns.

    Makes the Parquet files, `table.md`, `table.csv`, `figure.png`, `figure.svg`, `curves.png`, `diagnosis.png`,
    `histograms.png`, `report.html` and `tensorboard/`; of a search `search.md`, `search.csv`, `report.html` and
    `tensorboard/`. Any part of the planned trials will do. Records of trials that the manifest does not plan, as after
    a change of flags, go into the Parquet files alone. What cannot be written is told, and left out; what was
    raised there is added to `failed`.

    Where another process runs in `out`, what is made is marked as interim. `tensorboard/` is that process's own and
    stays as it is; all other files are replaced whole, and made again at its end. Until this returns no run can begin
    there; other reports can be made. Raises `InputError` where `out` is not the folder of an experiment.
    """
    out = Path(out)
    with kept(out) as alone:
        results = read(out)
        _write(results, [] if failed is None else failed, tensorboard=tensorboard and alone)
    tables = search if results.searching else arms
    wrong = failures.screen(results)
    return tables.terminal_table(results, width or table.WIDTH) + (f"\n{wrong}" if wrong else "")


def _write(results: Results, failed: list[Exception], *, tensorboard: bool) -> None:
    """Each part by itself: the others are made also where one cannot be."""

    @contextmanager
    def part(what: str) -> Iterator[None]:
        with dispensable(what, remedy, InputError) as raised:
            yield
        failed.extend(raised)

    remedy, tables = f"condkd report {results.out} makes it anew", search if results.searching else arms
    with part("Parquet files"):
        parquet.write_tables(results)
    with part("tables"):
        tables.write(results)
    drawn: Mapping[str, Figure | None] | None = None
    if not results.searching:
        drawn = dict.fromkeys(accuracy.FIGURES)
        with part("figures"):
            drawn = accuracy.draw(results.records, results.manifest)
            accuracy.save(results.out, drawn)
    if tensorboard:
        with part("TensorBoard files"), in_turn(results.out / "records"):
            boards.rebuild(results.out, results.records)
    with part("page"):
        page.write(results, drawn)
