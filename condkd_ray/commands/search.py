"""`condkd search`, and the functions that search scripts share.

This module imports neither PyTorch nor Optuna; `condkd_ray.commands.experiment` explains why.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from condkd_ray.commands.console.exit_codes import exit_code_of, log_to_stderr, show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.report import report_results
from condkd_ray.commands.teacher_flags import TeacherFlags
from condkd_ray.core.config import merge
from condkd_ray.core.method import require
from condkd_ray.runs.search_spec import SearchSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchFlags(TeacherFlags, SearchSpec):
    """Flags of every search. The flags of the teacher override the same fields of the space."""

    explain: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print an estimate of the search's time, memory and disk space, from probes of the space's corners, and stop.
    Nothing is trained or written."""


@dataclass(frozen=True, kw_only=True)
class Search(SearchFlags):
    """Search a space. Running the same command again continues an interrupted search, unfinished trials first."""

    space: tyro.conf.Positional[Path]
    """A YAML file of a config with open leaves, such as search_spaces/guidance.yaml."""
    out: Path = Path("runs/search")
    """Folder of the results. The same folder again continues the search: finished trials stay."""


def search(command: Search) -> int:
    """Run `condkd search SPACE`; return the exit code, see `condkd_ray.commands.experiment.command_line`.

    Raises `InputError` for a space or flags that cannot be used.
    """
    from condkd_ray.study.space import read

    return run(f"Which config of {command.space.name} is best?", read(command.space), command)


def run(question: str, tree: dict[str, Any], flags: SearchFlags) -> int:
    """Run the missing trials of a search of the space `tree`, report, and return the exit code.

    Raises `InputError` for a space or flags that cannot be used.
    """
    from condkd_ray.runs import search as searches

    log_to_stderr(flags.verbose)
    tree = with_flags(tree, flags)
    if flags.explain:
        show(searches.explained(tree, flags, view=TERMINAL))
        return 0
    result = searches.run(question, tree, flags, view=TERMINAL)
    report_results(flags.out, study=flags.study_storage)
    return exit_code_of(result)


def confirm(tree: dict[str, Any], flags: SearchFlags, *, best: int, seeds: Sequence[int]) -> int:
    """Run the `best` best trials of a finished search again with other seeds, report, and return the exit code.

    Raises `InputError` for flags that cannot be used, or if `seeds` contains the seed of the search.
    """
    from condkd_ray.report.build import build
    from condkd_ray.runs import search as searches

    result = searches.confirm(with_flags(tree, flags), flags, best=best, seeds=seeds, view=TERMINAL)
    report_results(result.out)
    code = exit_code_of(result)
    with TERMINAL.bar("page of the search"):
        build(flags.out, tensorboard=False)
    log.info(f"the page of the search now shows their results: {flags.out / 'report.html'}")
    return code


def with_flags(tree: dict[str, Any], flags: SearchFlags) -> dict[str, Any]:
    """Return the space, overridden by the flags of the teacher and completed by the teacher's card.

    Raises `InputError` if flags would replace a whole part of the space, such as an open choice of data.
    """
    about = flags.about_teacher()
    for part, given in about.items():
        old = tree.get(part, {})
        flagged = ", ".join(f"{part}.{name}" for name in given)
        accepted = f"a mapping or a name, which the flags for {flagged} can override; or no such flags"
        require(isinstance(old, (dict, str)), f"{part} of the search space", old, accepted)
    return _carded(merge(tree, about))


def _carded(tree: dict[str, Any]) -> dict[str, Any]:
    """Return `with_card(tree)`; in an open choice of data, each alternative is completed by the card."""
    from condkd_ray.study.space import Open
    from condkd_ray.trial.card import with_card

    data = tree.get("data")
    if not isinstance(data, Open) or data.kind != "choice":
        return with_card(tree)
    over = tuple(with_card({**tree, "data": one})["data"] for one in data.values)
    # If the card has no data fields, a choice of names stays one, so that the study parameter keeps its name.
    plain = all(part in (one, {"name": one}) for part, one in zip(over, data.values, strict=True))
    return with_card({**tree, "data": {}}) | {"data": data if plain else Open(data.kind, over)}
