"""The command line `condkd`: a try, a trial, a search, a condensed set, an export, a report, the pool, the methods."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from condkd_ray.commands.condense import Condense, condense
from condkd_ray.commands.console.exit_codes import exit_codes
from condkd_ray.commands.dashboard import Dashboard, dashboard
from condkd_ray.commands.export import Export, export_best
from condkd_ray.commands.methods_table import Methods, list_methods
from condkd_ray.commands.pool import Pool, show_pool
from condkd_ray.commands.report import Report, rebuild
from condkd_ray.commands.search import Search, search
from condkd_ray.commands.train import Train, train
from condkd_ray.commands.try_teacher import Try, try_out

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
VERBS = {
    Try: try_out,
    Search: search,
    Dashboard: dashboard,
    Export: export_best,
    Report: rebuild,
    Pool: show_pool,
    Methods: list_methods,
}
CONFIGURED = {"train": train, "condense": condense}
"""Commands that also have a flag for each field of the config, and so read their arguments themselves."""


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    with exit_codes():
        if sys.argv[1:] and sys.argv[1] in CONFIGURED:
            sys.exit(CONFIGURED[sys.argv[1]](sys.argv[2:]))
        command = tyro.cli(Command, prog="condkd")  # type: ignore[call-overload]
        sys.exit(VERBS[type(command)](command))


if __name__ == "__main__":
    main()
