"""The command line `condkd`: a try, a trial, a search, a condensed set, an export, a report, the pool, the methods."""

import sys
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Annotated, Any

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

VERBS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "try": (Try, try_out),
    "train": (Train, train),
    "condense": (Condense, condense),
    "search": (Search, search),
    "export": (Export, export_best),
    "dashboard": (Dashboard, dashboard),
    "report": (Report, rebuild),
    "pool": (Pool, show_pool),
    "methods": (Methods, list_methods),
}
CONFIGURED = ("train", "condense")
"""Verbs that also have a flag for each field of the config, and so read their arguments themselves."""


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    with exit_codes():
        if sys.argv[1:] and sys.argv[1] in CONFIGURED:
            _, run = VERBS[sys.argv[1]]
            sys.exit(run(sys.argv[2:]))
        kinds: Any = [Annotated[kind, tyro.conf.subcommand(verb)] for verb, (kind, _) in VERBS.items()]
        command: Any = tyro.cli(reduce(or_, kinds), prog="condkd")
        sys.exit(dict(VERBS.values())[type(command)](command))


if __name__ == "__main__":
    main()
