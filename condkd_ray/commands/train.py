"""`condkd train`: one trial in this process, of a YAML file, or of an earlier record, to see whether it repeats."""

import dataclasses
import logging
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.report import tell_results
from condkd_ray.core.config import Tree, merge, read_tree
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, find_record, flat
from condkd_ray.runs import experiment
from condkd_ray.trial.card import with_card
from condkd_ray.trial.config import TrialConfig, from_tree, of_record
from condkd_ray.trial.plan import NUMBERS

log = logging.getLogger(__name__)

C = TypeVar("C")
SHAPING = ("numbers", "teacher_hash", "data_hash", "condensed_hash", "proxy_hash", "threads", "git", "node")
"""Fields of a record, beside config and versions, that can make a repeated number differ."""


@dataclass(frozen=True, kw_only=True)
class _Here:
    """What both ways to name a trial have in common."""

    out: Path = Path("runs/train")
    cache: Path | None = None
    """Teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    threads: int = 1
    """Of the CPU. More were slower wherever other work shared the cores."""
    fresh: bool = False
    """Move what `--out` holds aside and begin anew."""
    device_pool_limit: str | None = None
    """Such as 500MB or 4GB of the GPU for synthetic images; what is beyond it is sent from the host's memory when it is
    drawn. A quarter of the GPU if not given."""


@dataclass(frozen=True, kw_only=True)
class Train(_Here):
    """Run one trial in this process, without Ray. The same command again continues from its checkpoint.

    Every field of the config is a flag too, over the file: `condkd train trial.yaml --inversion.steps 20`. A flag that
    does not exist lists what is accepted. `condkd train --from-record DIR HASH` repeats a trial of an experiment.
    """

    config: tyro.conf.Positional[Path]
    """A YAML file of config fields; those it leaves out keep their defaults."""
    arm: str = "trial"
    """The name of this run in tables."""


@dataclass(frozen=True, kw_only=True)
class Repeat(_Here):
    """Repeat a trial from its record, and say whether the number is equal and, if not, what differs.

    One that failed may fail again; where it raises an exception, its whole trace is shown.
    """

    from_record: tuple[Path, str]
    """A result folder, and the (beginning of the) hash of one of its trials."""


def configured(kind: type[C], arguments: list[str], prog: str) -> tuple[C, TrialConfig]:
    """A command with a `config` file, and that config with the remaining flags, which are fields of it."""
    command, rest = tyro.cli(kind, args=arguments, prog=prog, return_unknown_args=True)
    path: Path = command.config  # type: ignore[attr-defined]
    tree = read_tree(path)

    def flagged(tree: Tree) -> TrialConfig:
        return flagged_config(from_tree(tree, str(path)), rest, prog)

    config = flagged(tree)
    # What is known of weights lies under the file as the flags lie over it; the weights may be among these.
    given = {"weights": config.teacher.weights, "module": config.teacher.module, "card": config.teacher.card}
    own = {name: str(value) for name, value in given.items() if value is not None}
    return command, flagged(with_card(merge(tree, {"teacher": own}))) if own else config


def flagged_config(base: TrialConfig, arguments: list[str], prog: str) -> TrialConfig:
    """The config with flags that are its fields, such as `--inversion.steps 20`."""
    kind, default = _as_given(base)
    avoid = (tyro.conf.AvoidSubcommands,)
    return _restored(tyro.cli(kind, default=default, args=arguments, prog=prog, config=avoid))


def _as_given(value: Any) -> tuple[type, Any]:
    """A subclass of the value's class, and the value in it, whose fields have the classes of their own values.

    Of a union tyro takes the member that a default is an instance of: for a plug-in that derives from one of our
    methods, that method.
    """
    kind, parts = type(value), {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    found = {name: _as_given(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
    fields = [(name, inner, dataclasses.field(default=part)) for name, (inner, part) in found.items()]
    told = {"__doc__": kind.__doc__, "__module__": kind.__module__, "given_as": kind}
    made = dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), namespace=told, frozen=True, kw_only=True)
    return made, made(**parts | {name: part for name, (_, part) in found.items()})


def _restored(value: Any) -> Any:
    """The value, whose class is one of `_as_given`, in its own class."""
    kind = getattr(value, "given_as", None)
    if kind is None:
        return value
    return kind(**{one.name: _restored(getattr(value, one.name)) for one in dataclasses.fields(value)})


def train(arguments: list[str]) -> int:
    """`condkd train`: of a file, with flags that are fields of the config, or from a record as it stands."""
    if any(argument.partition("=")[0] == "--from-record" for argument in arguments):
        return repeat(tyro.cli(Repeat, args=arguments, prog="condkd train"))
    command, config = configured(Train, arguments, "condkd train")
    return 1 if _run(config, command.arm, command).status == "failed" else 0


def repeat(command: Repeat) -> int:
    """`condkd train --from-record`. The exit code: 1 also where the trial ends otherwise than before."""
    first = find_record(*command.from_record)
    drawn = f"{first.scope}: it drew what other trials made, as they came"
    require(first.scope != "sweep", "scope of the record", drawn, "a trial with images of its own")
    if first.numbers != NUMBERS:
        # First, as it may also be why the config is refused.
        versions = f"the record is of version {first.numbers} of the numbers, this program of version {NUMBERS}"
        log.info(f"{versions}: the number cannot be expected to repeat")
    config = of_record(first)
    again = _run(config, first.arm, command)
    equal, told = compare(first, again)
    show(told)
    return 1 if again.status == "failed" or not equal else 0


def _run(config: TrialConfig, arm: str, command: _Here) -> Record:
    """Run the trial and report; its record."""
    require(command.threads >= 1, "--threads", command.threads, "an integer >= 1")
    set_up_process(command.threads)
    kept = {"cache": command.cache, "fresh": command.fresh, "view": TERMINAL}
    kept["device_pool_limit"] = command.device_pool_limit
    record = experiment.run_alone(config, command.out, arm=arm, **kept)
    tell_results(command.out)
    return record


def compare(first: Record, again: Record) -> tuple[bool, str]:
    """Whether a trial and its repetition agree in test accuracy and in every prediction, and that in words.

    Two that failed agree where they did so for the same reason.
    """
    if "failed" in (first.status, again.status):
        then, now = (f"{record.status} ({record.outcome.reason})".removesuffix(" ()") for record in (first, again))
        return (True, f"equal: it {now} again") if then == now else (False, f"not equal: {then} then, {now} now")
    name = "student/test_accuracy"
    before, now = first.metrics[name], again.metrics[name]
    others = sum(a != b for a, b in zip_longest(first.outcome.predictions, again.outcome.predictions))
    if before == now and not others:
        return True, f"equal: test accuracy {now:.4%}, and all {len(again.outcome.predictions)} predictions"
    then, since = flat(first), flat(again)
    pairs = {name: (then[name], since[name]) for name in SHAPING}
    for old, new in ((first.versions, again.versions), (first.plugins, again.plugins)):
        pairs |= {name: (old.get(name), new.get(name)) for name in old | new}
    unlike = [f"{name} ({old or 'none'} then, {new or 'none'} now)" for name, (old, new) in pairs.items() if old != new]
    cause = ", ".join(unlike) or "nothing that is recorded: please report it"
    return False, f"not equal: test accuracy {before:.4%} then, {now:.4%} now, {others} predictions; differs: {cause}"
