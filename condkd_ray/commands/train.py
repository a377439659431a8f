"""One trial in this process, without Ray: of a YAML file, or of an earlier record, to see whether it repeats."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from condkd_ray.commands.console import TERMINAL
from condkd_ray.commands.console.exit_codes import CpuClock, open_folder, show
from condkd_ray.commands.console.results import tell_results
from condkd_ray.core import config as configs
from condkd_ray.core.method import require
from condkd_ray.methods.memory.store import MissingSamplesError
from condkd_ray.report.records import Record, find_record, finished, write_manifest
from condkd_ray.runs.manifest import describe_experiment, teacher_line
from condkd_ray.runs.recorder import Recorder
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.identity import NUMBERS, trial_hash
from condkd_ray.trial.outcome import Outcome
from condkd_ray.trial.plan import Plan, PlannedTrial
from condkd_ray.trial.product import product_path
from condkd_ray.trial.run import local_store, run_trial

log = logging.getLogger(__name__)

CHECKPOINT = "state.safetensors"
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


def train(command: Train, rest: list[str]) -> int:
    """`condkd train FILE`. The exit code."""
    base = configs.read(command.config)
    config = tyro.cli(TrialConfig, default=base, args=rest, prog="condkd train", config=(tyro.conf.AvoidSubcommands,))
    return _train(config, command.arm, command)[0]


def repeat(command: Repeat) -> int:
    """`condkd train --from-record`. The exit code: 1 also where the trial ends otherwise than before."""
    first = find_record(*command.from_record)
    drawn = f"{first.scope}: it drew what other trials made, as they came"
    require(first.scope != "sweep", "scope of the record", drawn, "a trial with images of its own")
    config = configs.from_tree(first.config, f"record {first.config_hash[:12]}")
    if first.numbers != NUMBERS:
        versions = f"the record is of version {first.numbers} of the numbers, this program of version {NUMBERS}"
        log.info(f"{versions}: the number cannot be expected to repeat")
    code, key = _train(config, first.arm, command)
    equal, told = compare(first, find_record(command.out, key))
    show(told)
    return code if equal else 1


def _train(config: TrialConfig, arm: str, command: _Here) -> tuple[int, str]:
    """The exit code, and the trial's hash."""
    require(command.threads >= 1, "--threads", command.threads, "an integer >= 1")
    torch.set_num_threads(command.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workshop = Workshop(command.cache, device=device, view=TERMINAL)
    workshop.check(config)
    open_folder(command.out, "train", fresh=command.fresh)
    plan = Plan(arm, getattr(config.condensation, "ipc", 0), config.seed, config)
    prepared = workshop.prepare(config)
    trial = PlannedTrial(trial_hash(config, prepared), plan, prepared)
    manifest = describe_experiment("train", "One trial.", [trial], workshop, command.out)
    write_manifest(command.out, manifest)
    log.info(teacher_line(manifest))
    code = 0
    if trial.key not in finished(command.out):
        code = _run(trial, command.out)
    write_manifest(command.out, dataclasses.replace(manifest, cpu_seconds=CpuClock().look()))
    tell_results(command.out)
    return code, trial.key


def compare(first: Record, again: Record) -> tuple[bool, str]:
    """Whether a trial and its repetition agree in test accuracy and in every prediction, and that in words.

    Two that failed agree where they did so for the same reason.
    """
    if "failed" in (first.status, again.status):
        then, now = (f"{record.status} ({record.reason})".removesuffix(" ()") for record in (first, again))
        return (True, f"equal: it {now} again") if then == now else (False, f"not equal: {then} then, {now} now")
    name = "student/test_accuracy"
    before, now = first.metrics[name], again.metrics[name]
    others = sum(a != b for a, b in zip(first.predictions, again.predictions, strict=False))
    others += abs(len(first.predictions) - len(again.predictions))
    if before == now and not others:
        return True, f"equal: test accuracy {now:.4%}, and all {len(again.predictions)} predictions"
    pairs = {name: (getattr(first, name), getattr(again, name)) for name in SHAPING}
    pairs |= {name: (first.versions.get(name), again.versions.get(name)) for name in first.versions | again.versions}
    unlike = [f"{name} ({old or 'none'} then, {new or 'none'} now)" for name, (old, new) in pairs.items() if old != new]
    cause = ", ".join(unlike) or "nothing that is recorded: please report it"
    return False, f"not equal: test accuracy {before:.4%} then, {now:.4%} now, {others} predictions; differs: {cause}"


def _run(trial: PlannedTrial[Prepared], out: Path) -> int:
    folder = out / "trials" / trial.key
    recorder = Recorder("train", out, [trial])
    try:
        try:
            outcome = _attempt(trial, folder, recorder)
        except MissingSamplesError as error:
            log.info(f"{error}: the trial begins anew")
            (folder / CHECKPOINT).unlink()
            outcome = _attempt(trial, folder, recorder)
        recorder.ended(trial, outcome)
    finally:
        recorder.close()
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    return 1 if recorder.failed else 0


def _attempt(trial: PlannedTrial[Prepared], folder: Path, recorder: Recorder) -> Outcome:
    return run_trial(
        trial.config,
        trial.prepared,
        local_store(trial.config, trial.prepared, folder),
        checkpoint=folder / CHECKPOINT,
        product=product_path(folder),
        on_round=lambda metrics: recorder.round(trial, metrics),
    )
