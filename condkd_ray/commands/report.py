"""`condkd report`, and how every run ends: its tables, and what is kept where and how to look at it."""

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
Tell = Callable[[Path], str]
"""Makes the report of an output folder in another way, and gives what is printed of it."""


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
    """`condkd report`; its exit code, which is 1 where a part could not be written."""
    if command.other is not None:
        # It draws, which the other commands need not wait for.
        from condkd_ray.report import page

        print(page.compare(command.out, command.other, command.to))
        return 0
    require(command.to is None, "--to", str(command.to), "with two folders; that of one is report.html in it")
    failed: list[Exception] = []

    def tell(out: Path) -> str:
        from condkd_ray.report.build import build

        return build(out, width=columns(), failed=failed)

    tell_results(command.out, tell=tell)
    return 1 if failed else 0


def tell_results(out: Path, *, study: str | None = None, tell: Tell | None = None) -> None:
    """Rebuild tables, figures and page from the records, print the tables, and say where all of it is.

    `study`: the storage that was named for it.
    """
    from condkd_ray.report.build import build

    with TERMINAL.bar("tables, figures and page"):
        tables = build(out, width=columns()) if tell is None else tell(out)
    show(tables)
    log.info("\n".join(kept(out, study)))


def kept(out: Path, study: str | None = None) -> list[str]:
    """What lies under `out`, and the commands that show it or go on with it; a line each, aligned."""
    # Here, as what runs imports this beside its flags, and these import PyTorch and Optuna.
    from condkd_ray.report.kept import kept_path
    from condkd_ray.report.page import PAGE
    from condkd_ray.report.tensorboard.writer import FOLDER
    from condkd_ray.study.storage import JOURNAL

    place, products = shlex.quote(str(out)), kept_path(out, "").parent
    # The storage's address may hold a password.
    where, named = ("where --study-storage says", " --study-storage ...") if study else (out / JOURNAL, "")
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
    return [f"{name:<{width}}  {told}" for name, told in lines.items() if told]
