"""The command line `condkd`: train one trial, rebuild a report, list the methods."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from condkd_ray import catalogue, report
from condkd_ray import config as configs
from condkd_ray.artifacts import Workshop, trial_hash
from condkd_ray.bookkeeping import Plan, Watch, describe_experiment, teacher_line
from condkd_ray.memory.store import MissingSamplesError
from condkd_ray.method import require
from condkd_ray.report.records import finished, write_manifest
from condkd_ray.run import Outcome, local_store, run_trial
from condkd_ray.shell import CpuClock, exit_codes, open_folder, say
from condkd_ray.trial import Prepared, TrialConfig

CHECKPOINT = "state.safetensors"


@dataclass(frozen=True)
class Train:
    """Run one trial in this process, without Ray. The same command again continues from its checkpoint.

    Every field of the config is a flag too, over the file: `condkd train trial.yaml --inversion.steps 20`. A flag that
    does not exist lists what is accepted.
    """

    config: tyro.conf.Positional[Path]
    """A YAML file of config fields; those it leaves out keep their defaults."""
    out: Path = Path("runs/train")
    cache: Path | None = None
    """Teachers and condensed sets; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    arm: str = "trial"
    """The name of this run in tables."""
    threads: int = 1
    """Of the CPU. More were slower wherever other work shared the cores."""
    fresh: bool = False
    """Move what `--out` holds aside and begin anew."""


@dataclass(frozen=True)
class Report:
    """Rebuild tables, figures, Parquet and TensorBoard files of a result folder from what is stored there."""

    out: tyro.conf.Positional[Path]
    """The `--out` of an experiment."""


@dataclass(frozen=True)
class Methods:
    """Print every method with where it was published, its hyper-parameters, and which of them are our choice."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
)


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    with exit_codes():
        command, rest = tyro.cli(Command, return_unknown_args=True, prog="condkd")  # type: ignore[call-overload]
        if isinstance(command, Train):
            sys.exit(train(command, rest))
        sys.exit(rebuild(command, rest) if isinstance(command, Report) else list_methods(rest))


def rebuild(command: Report, rest: list[str]) -> int:
    """`condkd report`."""
    if rest:
        tyro.cli(Report, args=[str(command.out), *rest], prog="condkd report")
    print(report.build(command.out))
    return 0


def list_methods(rest: list[str]) -> int:
    """`condkd methods`."""
    if rest:
        tyro.cli(Methods, args=rest, prog="condkd methods")
    print(catalogue.table(), end="")
    return 0


def train(command: Train, rest: list[str]) -> int:
    """`condkd train`."""
    base = configs.read(command.config)
    config = tyro.cli(TrialConfig, default=base, args=rest, prog="condkd train", config=(tyro.conf.AvoidSubcommands,))
    require(command.threads >= 1, "--threads", command.threads, "an integer >= 1")
    torch.set_num_threads(command.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workshop = Workshop(command.cache, device=device, say=say)
    workshop.check(config)
    open_folder(command.out, "train", fresh=command.fresh)
    plan = Plan(command.arm, getattr(config.condensation, "ipc", 0), config.seed, config)
    prepared = workshop.prepare(config)
    key = trial_hash(config, prepared)
    manifest = describe_experiment("train", "One trial.", [plan], [key], workshop, command.out)
    write_manifest(command.out, manifest)
    say(teacher_line(manifest))
    code = 0
    if key not in finished(command.out):
        code = _run(plan, key, prepared, command.out)
    write_manifest(command.out, dataclasses.replace(manifest, cpu_seconds=CpuClock().look()))
    print(report.build(command.out))
    say(f"records, checkpoint and tables: {command.out}")
    return code


def _run(plan: Plan, key: str, prepared: Prepared, out: Path) -> int:
    folder = out / "trials" / key
    watch = Watch("train", out, {key: (plan, prepared)})
    try:
        try:
            outcome = _attempt(plan, key, prepared, folder, watch)
        except MissingSamplesError as error:
            say(f"{error}: the trial begins anew")
            (folder / CHECKPOINT).unlink()
            outcome = _attempt(plan, key, prepared, folder, watch)
        watch.outcome(key, outcome)
    finally:
        watch.close()
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    return 1 if watch.failed else 0


def _attempt(plan: Plan, key: str, prepared: Prepared, folder: Path, watch: Watch) -> Outcome:
    return run_trial(
        plan.config,
        prepared,
        local_store(plan.config, prepared, folder),
        checkpoint=folder / CHECKPOINT,
        on_round=lambda metrics: watch.round(key, metrics),
    )


if __name__ == "__main__":
    main()
