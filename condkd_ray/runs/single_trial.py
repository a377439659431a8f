"""One trial in this process, without Ray, with the records of an experiment of one trial."""

import dataclasses
import logging
import shutil
from pathlib import Path

from condkd_ray.core.environment import CpuClock, default_device
from condkd_ray.core.records import Outcome, Record, find_record, finished, write_manifest
from condkd_ray.core.view import SILENT, View
from condkd_ray.methods.memory.store import MissingSamplesError
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.runs.recorder import Recorder, describe_experiment, teacher_line
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.identity import trial_hash
from condkd_ray.trial.plan import Plan, PlannedTrial
from condkd_ray.trial.product import product_path
from condkd_ray.trial.run import local_store, run_trial

log = logging.getLogger(__name__)

EXPERIMENT = "train"
CHECKPOINT = "state.safetensors"


def run(
    config: TrialConfig,
    out: Path,
    *,
    arm: str = "trial",
    cache: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    view: View = SILENT,
) -> Record:
    """Run a trial, or what its checkpoint in `out` leaves to be run, unless it has its record already; the record.

    `fresh` moves what `out` holds aside. Raises `InputError`.
    """
    workshop = Workshop(cache, device=device or default_device(), view=view)
    workshop.check(config)
    open_folder(out, EXPERIMENT, fresh=fresh)
    plan = Plan(arm, config.ipc, config.seed, config)
    prepared = workshop.prepare(config)
    trial = PlannedTrial(trial_hash(config, prepared), plan, prepared)
    manifest = describe_experiment(EXPERIMENT, "One trial.", [trial], workshop, out)
    write_manifest(out, manifest)
    log.info(teacher_line(manifest))
    if trial.key not in finished(out):
        _record(trial, out, view)
    write_manifest(out, dataclasses.replace(manifest, cpu_seconds=CpuClock().look()))
    return find_record(out, trial.key)


def _record(trial: PlannedTrial[Prepared], out: Path, view: View) -> None:
    """Run the trial from its checkpoint, or anew where samples of that are gone, and write what came of it."""
    folder = out / "trials" / trial.key
    recorder = Recorder(EXPERIMENT, out, [trial], view=view)

    def attempt() -> Outcome:
        return run_trial(
            *(trial.config, trial.prepared, local_store(trial.config, trial.prepared, folder)),
            checkpoint=folder / CHECKPOINT,
            product=product_path(folder),
            on_round=lambda metrics: recorder.round(trial, metrics),
        )

    try:
        try:
            outcome = attempt()
        except MissingSamplesError as error:
            log.info(f"{error}: the trial begins anew")
            (folder / CHECKPOINT).unlink()
            outcome = attempt()
        recorder.ended(trial, outcome)
    finally:
        recorder.close()
    shutil.rmtree(folder / "chunks", ignore_errors=True)
