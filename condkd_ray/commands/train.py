"""`condkd train`: run one trial in this process, from a YAML file, or from a record to check that it repeats."""

import dataclasses
import logging
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import tyro

from condkd_ray.commands.console.exit_codes import show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.parsing import parse
from condkd_ray.commands.report import report_results
from condkd_ray.core.config import Tree, merge, read_tree
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import require
from condkd_ray.core.records import Record, find_record, flat
from condkd_ray.core.task import IOU, is_dense
from condkd_ray.report.statistics import score_of
from condkd_ray.runs import experiment
from condkd_ray.trial.card import with_card
from condkd_ray.trial.config import TrialConfig, from_tree, of_record
from condkd_ray.trial.plan import NUMBERS

log = logging.getLogger(__name__)

C = TypeVar("C")
SHAPING = ("numbers", "teacher_hash", "data_hash", "condensed_hash", "proxy_hash", "threads", "git", "node")
"""Fields of a record that can change its numbers, in addition to `config` and `versions`."""


@dataclass(frozen=True, kw_only=True)
class _Here:
    """Flags common to a trial from a file and a trial from a record."""

    out: Path = Path("runs/train")
    """Folder of the results."""
    cache: Path | None = None
    """Folder of teachers and condensed sets; default: $CONDKD_CACHE, else a folder in the user's cache home."""
    threads: int = 1
    """CPU threads. More than one was slower whenever other work used the same cores."""
    fresh: bool = False
    """Move the present content of `--out` aside and start over."""
    device_pool_limit: str | None = None
    """GPU memory for synthetic images, such as 500MB or 4GB; images beyond it stay in the CPU's memory and are copied
    to the GPU when they are drawn. Default: a quarter of the GPU."""


@dataclass(frozen=True, kw_only=True)
class Train(_Here):
    """Run one trial in this process, without Ray. Running the same command again continues from its checkpoint.

    Every field of the config is a flag too and overrides the file: `condkd train trial.yaml --inversion.steps 20`. The
    error for an unknown flag lists the accepted ones. `condkd train --from-record DIR HASH` repeats a recorded trial.
    """

    config: tyro.conf.Positional[Path]
    """A YAML file of config fields; fields that it omits keep their defaults."""
    arm: str = "trial"
    """Name of this trial in the tables."""


@dataclass(frozen=True, kw_only=True)
class Repeat(_Here):
    """Repeat a trial from its record; print whether the result is equal and, if not, the differences.

    A trial that failed may fail again; if it raises an exception, the whole traceback is printed.
    """

    from_record: tuple[Path, str]
    """A result folder, and the hash, or the beginning of the hash, of one of its trials."""


def configured(kind: type[C], arguments: list[str], prog: str) -> tuple[C, TrialConfig]:
    """Parse a command that has a `config` file and a flag for each field of that config; return command and config.

    The flags override the file, and the file overrides the teacher's card. `prog`: name of the program in help and
    messages. Raises `InputError` if the file, the card or a field cannot be used.
    """
    command, rest = parse(kind, arguments, prog=prog, return_unknown_args=True)
    path: Path = command.config  # type: ignore[attr-defined]
    tree = read_tree(path)

    def flagged(tree: Tree) -> TrialConfig:
        return flagged_config(from_tree(tree, str(path)), rest, prog)

    config = flagged(tree)
    # The weights may be given by a flag, so the flags are applied once to find the card and once more over the card.
    given = {"weights": config.teacher.weights, "module": config.teacher.module, "card": config.teacher.card}
    own = {name: str(value) for name, value in given.items() if value is not None}
    return command, flagged(with_card(merge(tree, {"teacher": own}))) if own else config


def flagged_config(base: TrialConfig, arguments: list[str], prog: str) -> TrialConfig:
    """Return the config with the fields that `arguments` set, such as `--inversion.steps 20`."""
    kind, default = _as_given(base)
    avoid = (tyro.conf.AvoidSubcommands,)
    return _restored(parse(kind, arguments, default=default, prog=prog, config=avoid))


def _as_given(value: Any) -> tuple[type, Any]:
    """Return a subclass of the value's class in which each field has the class of its value, and the value in it.

    For a field with a union of classes, tyro uses the first class of which the default is an instance: for a plug-in
    that derives from one of our methods, it would use that method.
    """
    kind, parts = type(value), {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    found = {name: _as_given(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
    fields = [(name, inner, dataclasses.field(default=part)) for name, (inner, part) in found.items()]
    namespace = {"__doc__": kind.__doc__, "__module__": kind.__module__, "given_as": kind}
    made = dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), namespace=namespace, frozen=True, kw_only=True
    )
    return made, made(**parts | {name: part for name, (_, part) in found.items()})


def _restored(value: Any) -> Any:
    """Return the value, whose class was made by `_as_given`, in its original class."""
    kind = getattr(value, "given_as", None)
    if kind is None:
        return value
    return kind(**{one.name: _restored(getattr(value, one.name)) for one in dataclasses.fields(value)})


def train(arguments: list[str]) -> int:
    """Run `condkd train`, from a file with flags for the config's fields, or from a record; return the exit code.

    Raises `InputError` for a config, a record or flags that cannot be used.
    """
    if any(argument.partition("=")[0] == "--from-record" for argument in arguments):
        return repeat(parse(Repeat, arguments, prog="condkd train"))
    command, config = configured(Train, arguments, "condkd train")
    return 1 if _run(config, command.arm, command).status == "failed" else 0


def repeat(command: Repeat) -> int:
    """Run `condkd train --from-record`; return the exit code: 1 if the trial fails or the result is not equal.

    Raises `InputError` if the record cannot be repeated.
    """
    first = find_record(*command.from_record)
    drawn = f"{first.scope}: the images that it drew from other trials depended on their timing"
    require(first.scope != "sweep", "scope of the record", drawn, "a trial that used only its own images")
    if first.numbers != NUMBERS:
        # Logged before the config is parsed, because a config of another version may be refused.
        versions = f"the record has version {first.numbers} of the numbers, this program has version {NUMBERS}"
        log.info(f"{versions}: the result may differ")
    config = of_record(first)
    again = _run(config, first.arm, command)
    equal, text = compare(first, again)
    show(text)
    return 1 if again.status == "failed" or not equal else 0


def _run(config: TrialConfig, arm: str, command: _Here) -> Record:
    """Run the trial, report, and return its record."""
    require(command.threads >= 1, "--threads", command.threads, "an integer >= 1")
    set_up_process(command.threads)
    kept = {"cache": command.cache, "fresh": command.fresh, "view": TERMINAL}
    kept["device_pool_limit"] = command.device_pool_limit
    record = experiment.run_alone(config, command.out, arm=arm, **kept)
    report_results(command.out)
    return record


def compare(first: Record, again: Record) -> tuple[bool, str]:
    """Compare a trial with its repetition; return whether they are equal, and the comparison as text.

    Equal means equal test accuracy and equal predictions for all test images, in segmentation equal mean IoU and equal
    IoU of each class, or failure for the same reason.
    """
    if "failed" in (first.status, again.status):
        then, now = (f"{record.status} ({record.outcome.reason})".removesuffix(" ()") for record in (first, again))
        return (True, f"equal: it {now} again") if then == now else (False, f"not equal: {then} then, {now} now")
    score = score_of([first])
    before, now = first.metrics[score.test], again.metrics[score.test]
    if is_dense(score.task):
        # As text, because a class without pixels has the IoU NaN, which differs from itself.
        ious = [[repr(one.metrics.get(name)) for name in _classes(first, again)] for one in (first, again)]
        pairs, what = list(zip(*ious, strict=True)), "IoU of classes"
    else:
        pairs, what = list(zip_longest(first.outcome.predictions, again.outcome.predictions)), "predictions"
    others = sum(then != since for then, since in pairs)
    if before == now and not others:
        return True, f"equal: test {score.name} {now:.4%}, and all {len(pairs)} {what}"
    then, since = flat(first), flat(again)
    pairs = {name: (then[name], since[name]) for name in SHAPING}
    for old, new in ((first.versions, again.versions), (first.plugins, again.plugins)):
        pairs |= {name: (old.get(name), new.get(name)) for name in old | new}
    unlike = [f"{name} ({old or 'none'} then, {new or 'none'} now)" for name, (old, new) in pairs.items() if old != new]
    cause = ", ".join(unlike) or "nothing that is recorded; please report this"
    return False, f"not equal: test {score.name} {before:.4%} then, {now:.4%} now, {others} {what}; differs: {cause}"


def _classes(*records: Record) -> list[str]:
    """Return the metrics that are the IoU of a class in any of the records."""
    return sorted({name for record in records for name in record.metrics if name.startswith(IOU)})
