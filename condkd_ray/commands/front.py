"""What `condkd` answers before PyTorch and Ray are imported, which takes seconds, and half a minute on a busy machine.

Help, the version, a verb that does not exist, and that the output folder is in use. The help of a verb is stored beside
this module, in `help/`, as it is made of classes whose modules need PyTorch. `python -m condkd_ray.commands.front`
writes it anew.
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
from condkd_ray.core.locks import claim_early
from condkd_ray.core.method import InputError

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """A command: the module in `commands/`, its flags and its function, and what it does in a sentence."""

    module: str
    flags: str
    function: str
    told: str
    out: str | None = None
    """The default of `--out`, where it is a folder that the command has for itself."""
    configured: bool = False
    """Whether each field of a trial's config is a flag too, so that it reads its arguments itself."""

    def load(self) -> tuple[type, Any]:
        """The class of its flags, and its function: imports all that it needs."""
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


def answered(arguments: Sequence[str]) -> int | None:
    """The exit code of what needs no command, once it is answered; None where one is to be run. Raises `InputError`."""
    if not arguments or arguments[0] in HELP:
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"condkd {__version__}")
        return 0
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"verb is {name!r}{hint}; accepted: {', '.join(VERBS)}, --help, --version")
    if _asks_for_help(rest):
        print(stored_help(name), end="")
        return 0
    return None


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = (f"  {name:<{width}}  {verb.told}" for name, verb in VERBS.items())
    more = "condkd VERB --help tells its flags; README.md has a tour."
    return "\n".join(["usage: condkd [-h] [--version] VERB ...", "", *lines, "", more])


def _asks_for_help(rest: Sequence[str]) -> bool:
    # With a record in place of a file, `train` has other flags.
    return any(one in HELP for one in rest) and not any(one.partition("=")[0] == "--from-record" for one in rest)


def claim_out(verb: Verb, rest: Sequence[str]) -> None:
    """Claim the folder that a command will have for itself, if it is there. Raises `InputError`."""
    if verb.out is None or "--explain" in rest:
        return
    given = [one.removeprefix("--out=") for one in rest if one.startswith("--out=")]
    given += [rest[at + 1] for at, one in enumerate(rest[:-1]) if one == "--out"]
    claim_early(Path(given[-1] if given else verb.out), "--out")


def _help_path(name: str) -> Path:
    return Path(__file__).with_name("help") / f"{name}.txt"


def stored_help(name: str) -> str:
    """The help of a verb as it is stored."""
    return _help_path(name).read_text(encoding="utf-8")


def made_help(name: str) -> str:
    """The help of a verb, made of its flags."""
    import tyro

    said = StringIO()
    plain = {"COLUMNS": "80", "NO_COLOR": "1"}
    with patch.dict("os.environ", plain), redirect_stdout(said), suppress(SystemExit):
        tyro.cli(VERBS[name].load()[0], prog=f"condkd {name}", args=["--help"])
    return said.getvalue()


if __name__ == "__main__":
    for each in VERBS:
        _help_path(each).parent.mkdir(exist_ok=True)
        _help_path(each).write_text(made_help(each), encoding="utf-8")
