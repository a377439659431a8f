"""The part of `condkd` that runs before PyTorch and Ray are imported: help, version, unknown verbs, folders in use.

Those imports take seconds, and half a minute on a busy machine. The help text of each verb is stored in `help/` beside
this module, because the classes of the flags are in modules that import PyTorch. `python -m
condkd_ray.commands.front` writes these files again.
"""

import difflib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from condkd_ray import __version__
from condkd_ray.commands.console.exit_codes import show
from condkd_ray.core.locks import claim_early
from condkd_ray.core.method import InputError

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """A command: its module in `commands/`, the class of its flags, its function, and a one-sentence summary."""

    module: str
    flags: str
    function: str
    summary: str
    out: str | None = None
    """Default of `--out`, if the command locks that folder; None if it does not."""
    configured: bool = False
    """True if each field of a trial's config is a flag too; the function then parses the arguments itself."""

    def load(self) -> tuple[type, Any]:
        """Import the command's module; return the class of its flags and its function."""
        module = import_module(f"condkd_ray.commands.{self.module}")
        return getattr(module, self.flags), getattr(module, self.function)


VERBS = {
    "try": Verb("try_teacher", "Try", "try_out", "Does guidance help, with your teacher and images?", out="runs/try"),
    "train": Verb(
        *("train", "Train", "train", "Run one trial in this process, without Ray."), out="runs/train", configured=True
    ),
    "condense": Verb(
        "condense", "Condense", "condense", "Make the condensed set that a trial config names.", configured=True
    ),
    "search": Verb("search", "Search", "search", "Search a space.", out="runs/search"),
    "export": Verb("export", "Export", "export_best", "Write the best student and its synthetic images."),
    "dashboard": Verb("dashboard", "Dashboard", "dashboard", "Start the Optuna dashboard and TensorBoard."),
    "report": Verb("report", "Report", "rebuild", "Rebuild tables, figures and page; or compare two folders."),
    "pool": Verb("pool", "Pool", "show_pool", "Print what the pool of a sweep holds."),
    "methods": Verb("methods_table", "Methods", "list_methods", "Print every method, network or published system."),
}


def exit_code_without_command(arguments: Sequence[str]) -> int | None:
    """Print help or the version if the arguments request it, and return the exit code; None if a command is to run.

    Raises `InputError` if the verb does not exist.
    """
    if not arguments or arguments[0] in HELP:
        if arguments:
            show(_usage())
            return 0
        print(_usage(), file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        show(f"condkd {__version__}")
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"verb is {name!r}{hint}; accepted: {', '.join(VERBS)}, --help, --version")
    if _requests_help(rest):
        show(stored_help(name), end="")
        return 0
    return None


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = (f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    more = "condkd VERB --help lists the flags of a verb; README.md has a tour."
    return "\n".join(["usage: condkd [-h] [--version] VERB ...", "", *lines, "", more])


def _requests_help(rest: Sequence[str]) -> bool:
    # `train --from-record` has other flags than the stored help text of `train`.
    return any(one in HELP for one in rest) and not any(one.partition("=")[0] == "--from-record" for one in rest)


def claim_out(verb: Verb, rest: Sequence[str]) -> None:
    """Lock the command's `--out` folder if it exists. Raises `InputError` if another process runs there."""
    if verb.out is None or "--explain" in rest:
        return
    given = [one.removeprefix("--out=") for one in rest if one.startswith("--out=")]
    given += [rest[at + 1] for at, one in enumerate(rest[:-1]) if one == "--out"]
    claim_early(Path(given[-1] if given else verb.out), "--out")


def _help_path(name: str) -> Path:
    return Path(__file__).with_name("help") / f"{name}.txt"


def stored_help(name: str) -> str:
    """Return the help text of a verb from its file in `help/`."""
    return _help_path(name).read_text(encoding="utf-8")


def render_help(name: str, columns: int = 80) -> str:
    """Return the help text of a verb, rendered from its flags for a terminal of that width."""
    from condkd_ray.commands.parsing import parse

    rendered = StringIO()
    plain = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    with patch.dict("os.environ", plain), redirect_stdout(rendered), suppress(SystemExit):
        parse(VERBS[name].load()[0], ["--help"], prog=f"condkd {name}")
    return rendered.getvalue()


if __name__ == "__main__":
    for each in VERBS:
        _help_path(each).parent.mkdir(exist_ok=True)
        _help_path(each).write_text(render_help(each), encoding="utf-8")
