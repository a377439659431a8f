"""`condkd report`, and the end of every run: rebuild the report, print its tables and list the files of the run."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.console.screen import columns
from condkd_ray.core.method import require

log = logging.getLogger(__name__)

TABLES = ("search.md", "table.md")
FIGURES = ("figure.png", "curves.png", "diagnosis.png")
Reporter = Callable[[Path], str]
"""Writes the report of an output folder and returns the text to print."""


@dataclass(frozen=True)
class Report:
    """Rebuild tables, figures, page, Parquet and TensorBoard files of a result folder from its stored results.

    With two folders: write one page that compares trials of equal arm, IPC and seed side by side, and nothing else.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment or a search."""
    other: tyro.conf.Positional[Path | None] = None
    """The `--out` of another run on the same data set, which is compared with the first."""
    to: Path | None = None
    """File of the comparison; default: `comparison.html` in the first folder."""


def rebuild(command: Report) -> int:
    """Run `condkd report`; return the exit code, which is 1 if a part of the report could not be written.

    Raises `InputError` if a folder does not hold results, if two folders cannot be compared, or for `to` with one
    folder.
    """
    if command.other is not None:
        # Imported here because it imports matplotlib, which other commands do not need.
        from condkd_ray.report import page

        show(str(page.compare(command.out, command.other, command.to)))
        return 0
    accepted = "--to only with two folders; the page of a single folder is report.html in it"
    require(command.to is None, "--to", str(command.to), accepted)
    failed: list[Exception] = []

    def report(out: Path) -> str:
        from condkd_ray.report.build import build

        return build(out, width=columns(), failed=failed)

    report_results(command.out, report=report)
    return 1 if failed else 0


def report_results(out: Path, *, study: str | None = None, report: Reporter | None = None) -> None:
    """Rebuild the report of `out` from its records, print the tables and log where the files are.

    `study`: the study storage, if the user named one. `report`: replaces `condkd_ray.report.build.build`. Raises
    `InputError` if `out` is not a folder of results.
    """
    from condkd_ray.report.build import build

    with TERMINAL.bar("tables, figures and page"):
        tables = build(out, width=columns()) if report is None else report(out)
    show(tables)
    log.info("\n".join(kept(out, study)))


def kept(out: Path, study: str | None = None) -> list[str]:
    """Return the files in `out` and the commands that use them, as aligned lines."""
    # Imported here because these modules import PyTorch and Optuna, and scripts import this one along with their flags.
    from condkd_ray.report.kept import kept_path
    from condkd_ray.report.page import PAGE
    from condkd_ray.report.tensorboard.writer import FOLDER
    from condkd_ray.study.storage import JOURNAL

    place, products = shlex.quote(str(out)), kept_path(out, "").parent
    # The address of the storage is not printed, because it may contain a password.
    where, named = ("in the --study-storage", " --study-storage ...") if study else (out / JOURNAL, "")
    take_along = str(Path("export") / out.resolve().name)
    lines = {
        "study": f"{where}" if study or (out / JOURNAL).is_file() else "",
        "records": f"{out / 'records'}, {out / 'records.parquet'}",
        "tables": ", ".join(str(out / name) for name in TABLES if (out / name).is_file()),
        "figures": ", ".join(str(out / name) for name in FIGURES if (out / name).is_file()),
        "page": f"{out / PAGE}" if (out / PAGE).is_file() else "",
        "look live": f"condkd dashboard {place}{named}" if (out / FOLDER).is_dir() else "",
        "take along": f"condkd export {place} --to {shlex.quote(take_along)}"
        if any(products.glob("*.safetensors"))
        else "",
    }
    width = max(map(len, lines))
    return [f"{name:<{width}}  {text}" for name, text in lines.items() if text]
