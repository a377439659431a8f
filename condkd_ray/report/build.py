"""Rebuild the whole report of a result folder from its records."""

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
from condkd_ray.report.tables import arms, classes, failures, search, table
from condkd_ray.report.tensorboard import writer as boards


def build(out: Path, tensorboard: bool = True, width: int | None = None, failed: list[Exception] | None = None) -> str:
    """Rebuild the report of `out`; return the tables and the list of failed trials as text, `width` columns wide.

    For an experiment, writes the Parquet files, `table.md`, `table.csv`, `figure.png`, `figure.svg`, `curves.png`,
    `diagnosis.png`, `histograms.png`, `report.html` and `tensorboard/`; for a search, the Parquet files, `search.md`,
    `search.csv`, `report.html` and `tensorboard/`. The planned trials need not be complete. Records of trials that are
    not in the manifest's plan, for example after a change of flags, are written to the Parquet files only. If a part
    cannot be written, a message is logged, the exception is added to `failed`, and the other parts are written.

    If another process is running trials in `out`, the report is marked as interim, and `tensorboard/` is not written
    because that process writes it. All other files are replaced atomically, and again when that process ends. No run
    can start in `out` until this function returns; other reports can. Raises `InputError` if `out` is not the folder of
    an experiment.
    """
    out = Path(out)
    with kept(out) as alone:
        results = read(out)
        _write(results, [] if failed is None else failed, tensorboard=tensorboard and alone)
    tables = search if results.searching else arms
    wrong = failures.screen(results)
    return tables.terminal_table(results, width or table.WIDTH) + (f"\n{wrong}" if wrong else "")


def _write(results: Results, failed: list[Exception], *, tensorboard: bool) -> None:
    """Write each part; a part that cannot be written does not keep the others from being written."""

    @contextmanager
    def part(what: str) -> Iterator[None]:
        with dispensable(what, remedy, InputError) as raised:
            yield
        failed.extend(raised)

    remedy, tables = f"condkd report {results.out} writes it again", search if results.searching else arms
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
            boards.rebuild(results.out, results.records, results.score, [classes.iou_table(results)])
    with part("page"):
        page.write(results, drawn)
