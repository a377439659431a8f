"""The command line `condkd`: a try, a trial, a search, a condensed set, an export, a report, the pool, the methods."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from condkd_ray.commands import methods_table
from condkd_ray.commands.condense import Condense, condense
from condkd_ray.commands.console.exit_codes import exit_codes
from condkd_ray.commands.console.results import tell_results
from condkd_ray.commands.dashboard import Dashboard, dashboard
from condkd_ray.commands.export import choose, export, merit
from condkd_ray.commands.pool import pool_table
from condkd_ray.commands.train import Repeat, Train, repeat, train
from condkd_ray.commands.try_teacher import Try, try_out
from condkd_ray.core.method import require
from condkd_ray.core.storage import locate
from condkd_ray.runs import presets
from condkd_ray.runs.search import Search, search

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Pool:
    """Print what the pool of a sweep holds: keys, chunks, bytes, readers, rounds that sharing spared."""

    out: tyro.conf.Positional[str]
    """The `--out` of an experiment, running or interrupted; or its `--storage`, where it has one apart."""


@dataclass(frozen=True)
class Methods:
    """Print every method with where it was published, its hyper-parameters, and which of them are our choice."""

    networks: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the architectures instead, with their parameters and multiply-adds."""
    published: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the published systems instead, which `--host` takes, with images made, images taught and multiply-adds."""


@dataclass(frozen=True)
class Export:
    """Write the best student and its synthetic images in forms that need nothing of this package.

    The best by validation accuracy, or by agreement on the proxy set where there is none; never by test accuracy, and
    not the reference that was taught with all real images. An experiment keeps the best trial of each arm and IPC.
    """

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment or of `condkd train`."""
    trial: str | None = None
    """The (beginning of the) hash of another kept trial."""
    to: Path = Path("export")
    """A new or empty folder."""


Command = (
    Annotated[Try, tyro.conf.subcommand("try")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Condense, tyro.conf.subcommand("condense")]
    | Annotated[Search, tyro.conf.subcommand("search")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Dashboard, tyro.conf.subcommand("dashboard")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Pool, tyro.conf.subcommand("pool")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
)


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    with exit_codes():
        verbs = {
            Try: try_out,
            Search: search,
            Dashboard: dashboard,
            Export: export_best,
            Report: rebuild,
            Pool: show_pool,
            Methods: list_methods,
        }
        configured = {"train": _train, "condense": _condense}
        if sys.argv[1:] and sys.argv[1] in configured:
            sys.exit(configured[sys.argv[1]](sys.argv[2:]))
        command = tyro.cli(Command, prog="condkd")  # type: ignore[call-overload]
        sys.exit(verbs[type(command)](command))


def _train(arguments: list[str]) -> int:
    """`condkd train`: of a file, with flags that are fields of the config, or from a record as it stands."""
    if any(argument.partition("=")[0] == "--from-record" for argument in arguments):
        return repeat(tyro.cli(Repeat, args=arguments, prog="condkd train"))
    command, rest = tyro.cli(Train, args=arguments, prog="condkd train", return_unknown_args=True)
    return train(command, rest)


def _condense(arguments: list[str]) -> int:
    """`condkd condense`: with flags that are fields of the config."""
    command, rest = tyro.cli(Condense, args=arguments, prog="condkd condense", return_unknown_args=True)
    return condense(command, rest)


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


def show_pool(command: Pool) -> int:
    """`condkd pool`."""
    print(pool_table(locate(command.out, "storage")))
    return 0


def list_methods(command: Methods) -> int:
    """`condkd methods`."""
    require(not (command.networks and command.published), "--networks beside --published", "both", "one of them")
    tables = {
        (True, False): methods_table.networks_table,
        (False, True): presets.table,
        (False, False): methods_table.table,
    }
    print(tables[command.networks, command.published](), end="")
    return 0


def export_best(command: Export) -> int:
    """`condkd export`."""
    record = choose(command.out, command.trial)
    empty = not command.to.exists() or (command.to.is_dir() and not any(command.to.iterdir()))
    require(empty, "--to", str(command.to), "a new or empty folder")
    name, value = merit(record)
    ipc = f" ipc {record.ipc}" if record.ipc else ""
    log.info(f"trial {record.config_hash[:12]}, {record.arm}{ipc} seed {record.seed}: {name} {value:.2%}")
    for line in export(command.out, record, command.to):
        print(f"{command.to / line}")
    return 0


if __name__ == "__main__":
    main()
