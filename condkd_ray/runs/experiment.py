"""Runs the planned trials of an experiment and writes their records. Trials that have a record are not run again."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from condkd_ray.cluster.connection import connect, in_job_folder
from condkd_ray.cluster.files import clear, empty
from condkd_ray.cluster.options import check_resources
from condkd_ray.core import compilation
from condkd_ray.core.checkpoint import DamagedError
from condkd_ray.core.chunk_files import MissingSamplesError
from condkd_ray.core.environment import CpuClock, default_device
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import Outcome, Record, find_record, finished, read_manifest, write_manifest
from condkd_ray.core.storage import check_writable
from condkd_ray.core.units import parse_size
from condkd_ray.core.view import SILENT, View
from condkd_ray.report.statistics import Baseline
from condkd_ray.runs.estimate import explain, finished_before
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.runs.products import ALONE
from condkd_ray.runs.recorder import Recorder, StudyRecorder, describe_experiment, teacher_line
from condkd_ray.trial.allowance import Allowance
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import Prepared, TrialConfig
from condkd_ray.trial.device_pool import FLAG, check_on_gpu, check_round_fits
from condkd_ray.trial.given_teacher import GivenTeacher
from condkd_ray.trial.hardware import CPU, Hardware, compute_line, hardware_of, settled
from condkd_ray.trial.outcome import product_path
from condkd_ray.trial.plan import Plan, PlannedTrial, Scope, trial_hash
from condkd_ray.trial.run import local_store, run_trial

log = logging.getLogger(__name__)

Trial = PlannedTrial[Prepared]


def check_plans(planned: Sequence[Plan]) -> None:
    """Raise `InputError` if there are no plans, if two are equal, or if a trial with producers shares its images."""
    require(bool(planned), "number of trials", 0, "at least one arm, IPC and seed")
    first: dict[tuple[TrialConfig, Scope], Plan] = {}
    for plan in planned:
        twin = first.setdefault((plan.config, plan.scope), plan)
        same = f"{twin.label} and {plan.label}"
        require(twin is plan, "trial planned twice", same, "arms, IPCs and seeds that differ")
        alone = plan.scope == "trial" or plan.config.pipeline is None
        require(
            alone,
            "--share with --producers",
            plan.scope,
            "trial: the images of a trial's own producers are deleted with it",
        )


def check_hashes(trials: Sequence[Trial]) -> None:
    """Raise `InputError` if two trials have the same hash, and so equal settings, code and contents of files."""
    first: dict[str, Trial] = {}
    for trial in trials:
        twin = first.setdefault(trial.key, trial)
        accepted = "arms that differ in more than the location of files; leave out one of the two"
        require(twin is trial, f"trial {trial.key[:12]} planned twice", f"{twin.label} and {trial.label}", accepted)


def scoped(plan: Plan, scope: Scope) -> Plan:
    """Return the plan with the scope of the flags, unless the plan has a scope other than "trial"."""
    if plan.scope != "trial" or scope == "trial":
        return plan
    return dataclasses.replace(plan, arm=_arm(plan.arm, scope), scope=scope)


def _arm(arm: str, scope: Scope) -> str:
    """Return the name of an arm in this scope. An arm that draws from other trials' images has another name."""
    return f"{arm} (sweep's pool)" if scope == "sweep" else arm


def scoped_baseline(baseline: Baseline, plans: Sequence[Plan], scope: Scope) -> Baseline:
    """Return the baseline of each arm after `scoped`: the same arm as before, under its name in the scope."""
    own = {plan.arm: baseline if isinstance(baseline, str) else baseline.get(plan.arm, "none") for plan in plans}
    scoped = {_arm(arm, scope): _arm(base, scope) for arm, base in own.items()}
    return baseline if scope != "sweep" else own | scoped


def run(
    experiment: str,
    question: str,
    plans: Sequence[Plan],
    options: Options,
    *,
    only: Sequence[str] = (),
    baseline: Baseline = "none",
    workshop: Workshop | None = None,
    view: View = SILENT,
) -> RunResult:
    """Run the trials of `plans` that have no record yet, on Ray, and write a record whenever a trial ends.

    Args:
        experiment: Name of the experiment.
        question: Question of the experiment, shown in the report.
        plans: The planned trials.
        options: Output folder, budget, storage and resources.
        only: Prefixes of config hashes; if given, the other trials are not run.
        baseline: The arm with which every other arm is compared, or one for each arm.
        workshop: Makes teachers and condensed sets; a new one if not given.
        view: Shows progress.

    Raises `InputError` for plans or options that cannot be used, before anything is written, and `ClusterError` if Ray
    does not start or is lost.
    """
    deadline = time.time() + options.budget_seconds
    workshop = workshop or Workshop(options.cache, device=default_device(), view=view)
    planned, baseline = checked(plans, options, workshop), scoped_baseline(baseline, plans, options.share)
    _check_only(only, options)
    where = "a folder that outlives the job, as an absolute path"
    require(not in_job_folder(options.out), "--out", str(options.out), where)
    if options.storage is not None:
        check_writable(options.storage_root)
    open_folder(options.out, experiment, fresh=options.fresh)
    with connect(options.address, view=view):
        # These modules import Ray, which takes a second.
        from condkd_ray.cluster.hardware import trial_hardware
        from condkd_ray.cluster.module_check import check_modules, check_plugins
        from condkd_ray.cluster.pool.limits import check_limit, planned_round
        from condkd_ray.cluster.storage_check import check_reach
        from condkd_ray.cluster.sweep import sweep

        cluster = options.of_cluster(deadline)
        cluster.check([plan.config for plan in planned])
        check_reach(options.storage_root, options.storage_flag)
        check_modules(own_modules((plan.config.teacher.module for plan in planned), workshop))
        check_plugins([plan.config for plan in planned])
        hardware = trial_hardware(options.gpus_per_trial)
        planned = settled_plans(planned, hardware)

        def check_pool(some: Sequence[Plan]) -> None:
            rounds = [planned_round(plan, workshop.data(plan.config)) for plan in some]
            check_limit(cluster, [plan.config for plan in some], rounds)

        chosen = _narrowed(planned, only, options)
        try:
            # Before teachers are trained.
            check_pool(chosen)
        except InputError:
            # Trials that have finished need no room; to tell them takes milliseconds for each.
            done = finished_before(chosen, options.out)
            check_pool([plan for plan in chosen if plan not in done])
        if options.fresh:
            empty(options.storage_root)
        prepared = workshop.prepare_all([plan.config for plan in planned])
        pairs = zip(planned, prepared, strict=True)
        trials = [Trial(trial_hash(plan.config, made, plan.scope), plan, made) for plan, made in pairs]
        check_hashes(trials)
        manifest = describe_experiment(experiment, question, trials, workshop, options.out, baseline=baseline)
        write_manifest(options.out, manifest)
        log.info(teacher_line(manifest))
        log_idle([plan.config for plan in planned])
        each, limit = options.per_trial, options.device_pool_bytes
        log.info(compute_line((plan.config for plan in planned), hardware, each, limit))
        missing = _missing(trials, options, only)
        records = Recorder(
            *(experiment, options.out, missing, options.storage_root),
            study=lambda: StudyRecorder(experiment, options.out, trials),
            view=view,
        )
        try:
            complete = sweep(missing, cluster, records)
        finally:
            records.close()
        spent = records.clock.measure()
    write_manifest(options.out, dataclasses.replace(manifest, cpu_seconds=spent))
    return RunResult(options.out, complete, records.failed, ("time",) if time.time() >= deadline else ())


def own_modules(names: Iterable[str | None], workshop: Workshop) -> dict[str, nn.Module]:
    """Return the users' own teacher modules by name; None among the names stands for another teacher.

    Raises `InputError` if a module cannot be made.
    """
    return {name: workshop.own_module(name).network for name in dict.fromkeys(names) if name is not None}


def explained(
    experiment: str, plans: Sequence[Plan], options: Options, *, only: Sequence[str] = (), view: View = SILENT
) -> str:
    """Return the number of trials and their estimated cost, as text. Raises `InputError` if `run` would.

    `only`: as in `run`; the other trials are left out.
    """
    device = default_device()
    planned = checked(plans, options, Workshop(options.cache, device=device, view=view))
    _check_only(only, options)
    planned = _narrowed(settled_plans(planned, hardware_for(options, view)), only, options)
    return explain(experiment, planned, options, device, view)


def hardware_for(options: Options, view: View = SILENT) -> Hardware:
    """Return the hardware on which trials with these options run.

    Starts Ray, or connects to it, only if the trials use GPUs. Raises `InputError` if the cluster lacks the resources.
    """
    if not options.gpus_per_trial:
        return CPU
    with connect(options.address, view=view):
        # This module imports Ray, which takes a second.
        from condkd_ray.cluster.hardware import trial_hardware

        check_resources(options.cpus_per_trial, options.gpus_per_trial, options.resources)
        return trial_hardware(options.gpus_per_trial)


def settled_plans(planned: Sequence[Plan], hardware: Hardware) -> list[Plan]:
    """Return the plans with the settings that configs leave to the hardware filled in.

    Raises `InputError` if two plans are equal after that.
    """
    found = [dataclasses.replace(plan, config=settled(plan.config, hardware)) for plan in planned]
    check_plans(found)
    return found


def checked(plans: Sequence[Plan], options: Options, workshop: Workshop) -> list[Plan]:
    """Check options and plans, and return the plans in the scope of the options.

    For trials on CPUs, settings that depend on the hardware are filled in here; for GPUs this requires Ray and is done
    after connecting. Raises `InputError` for options, plans and configs that cannot be used.
    """
    planned = [scoped(plan, options.share) for plan in plans]
    options.check()
    check_plans(planned)
    for plan in planned:
        workshop.check(plan.config)
        check_round_fits(options.device_pool_bytes, plan.config, workshop.data(plan.config))
    return planned if options.gpus_per_trial else settled_plans(planned, CPU)


def log_idle(configs: Sequence[TrialConfig]) -> None:
    """Log each option that is set but has no effect, once."""
    for what in dict.fromkeys(what for config in configs for what in config.idle):
        log.info(f"{what} has no effect")


def _check_only(only: Sequence[str], options: Options) -> None:
    """Raise `InputError` unless `--only` selects trials that an earlier run in the folder planned.

    Users can read hashes only in the results of an earlier run, so this can be checked before a teacher is trained.
    """
    if only:
        require(not options.fresh, "--only", " ".join(only), "hashes of trials of an earlier run, without --fresh")
        before = read_manifest(options.out).planned
        _chosen({trial["config_hash"]: f"{trial['arm']} seed {trial['seed']}" for trial in before}, only)


def _narrowed(planned: list[Plan], only: Sequence[str], options: Options) -> list[Plan]:
    """Return the plans that `--only` selects; all of them if it is not given.

    The hash of a plan is that of the trial with its arm, IPC and seed in an earlier run, because its own hash includes
    the teacher, which may not exist yet. Raises `InputError` unless each prefix belongs to exactly one plan.
    """
    if not only:
        return planned
    places = {(plan.arm, plan.ipc, plan.seed): plan for plan in planned}
    before = [(one["config_hash"], (one["arm"], one["ipc"], one["seed"])) for one in read_manifest(options.out).planned]
    found = {key: places[place] for key, place in before if place in places}
    chosen = _chosen({key: plan.label for key, plan in found.items()}, only)
    return [plan for key, plan in found.items() if key in chosen]


def _missing(trials: list[Trial], options: Options, only: Sequence[str]) -> list[Trial]:
    """Return the trials to run, and log how many are finished already.

    Also deletes the files of finished trials that remained in the storage because a driver died.
    """
    done = finished(options.out)
    clear(options.storage_root, [t for t in trials if t.key in done], [t for t in trials if t.key not in done])
    wanted = _chosen({trial.key: trial.label for trial in trials}, only)
    before = sum(trial.key in done for trial in trials)
    chosen = f", {len(wanted)} of them chosen" if only else ""
    log.info(f"{len(trials)} trials{chosen}, {before} of them already finished; results in {options.out}")
    return [trial for trial in trials if trial.key in wanted - done]


def _chosen(labels: Mapping[str, str], beginnings: Sequence[str]) -> set[str]:
    """Return the hashes with these prefixes, or all hashes if there are no prefixes. `labels`: names of trials by hash.

    Raises `InputError` unless each prefix belongs to exactly one hash.
    """
    there = ", ".join(f"{key[:8]} ({label})" for key, label in list(labels.items())[:20])
    for beginning in beginnings:
        found = sum(key.startswith(beginning) for key in labels)
        require(found == 1, "--only", beginning, f"the beginning of the hash of one planned trial: {there or 'none'}")
    return {key for key in labels if not beginnings or key.startswith(tuple(beginnings))}


def run_alone(
    config: TrialConfig,
    out: Path,
    *,
    arm: str = "trial",
    cache: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    device_pool_limit: str | None = None,
    given: GivenTeacher | None = None,
    view: View = SILENT,
) -> Record:
    """Run one trial in this process, without Ray, as an experiment of one trial, and return its record.

    The trial continues from its checkpoint in `out`, if there is one; if it already has a record, nothing is run.

    Args:
        config: The trial.
        out: Folder of the records, the checkpoint and the product.
        arm: Name of the trial in records and tables.
        cache: Folder of teachers and condensed sets; the default cache if not given.
        device: `cpu`, `cuda` or one of several GPUs, such as `cuda:1`; the default device if not given.
        fresh: Move the contents of `out` aside first.
        device_pool_limit: As in `Options`.
        given: The teacher object, if the config names it as its teacher.
        view: Shows progress.

    Raises `InputError` if the config or an argument cannot be used.
    """
    workshop = Workshop(cache, device=device or default_device(), view=view, given=given)
    workshop.check(config)
    limit = alone_limit(device_pool_limit, config, workshop)
    hardware = hardware_of(workshop.device)
    config = settled(config, hardware)
    compilation.check(config.compile, config.graphs, workshop.device)
    open_folder(out, ALONE, fresh=fresh)
    plan = Plan(arm, config.ipc, config.seed, config)
    prepared = workshop.prepare(config)
    trial = Trial(trial_hash(config, prepared), plan, prepared)
    manifest = describe_experiment(ALONE, "One trial.", [trial], workshop, out)
    write_manifest(out, manifest)
    log.info(teacher_line(manifest))
    log_idle([config])
    log.info(compute_line([config], hardware, Allowance(torch.get_num_threads(), 1), limit))
    if trial.key not in finished(out):
        run_and_record(trial, out, view, limit)
    write_manifest(out, dataclasses.replace(manifest, cpu_seconds=CpuClock().measure()))
    return find_record(out, trial.key)


def alone_limit(given: str | None, config: TrialConfig, workshop: Workshop) -> int | None:
    """Return the `--device-pool-limit` of a trial on the workshop's device in bytes; None if it is not given.

    Raises `InputError` if it is given on a CPU, cannot be parsed, or is too small for a round of the trial.
    """
    limit = None if given is None else parse_size(given, FLAG)
    check_on_gpu(given, workshop.device != "cpu", "none, or a GPU")
    check_round_fits(limit, config, workshop.data(config))
    return limit


def run_and_record(trial: Trial, out: Path, view: View, device_limit: int | None) -> None:
    """Run the trial and write its record.

    The trial starts from its checkpoint, or from the beginning if the checkpoint is damaged or its samples are missing.
    """
    folder = out / "trials" / trial.key
    checkpoint = folder / "state.safetensors"
    recorder = Recorder(ALONE, out, [trial], view=view)

    def attempt() -> Outcome:
        return run_trial(
            *(trial.config, trial.prepared, local_store(trial.config, trial.prepared, folder, device_limit)),
            checkpoint=checkpoint,
            product=product_path(folder),
            on_round=lambda metrics: recorder.round(trial, metrics),
        )

    try:
        try:
            outcome = attempt()
        except (MissingSamplesError, DamagedError) as error:
            log.info(f"{error}: the trial restarts from the beginning")
            checkpoint.unlink(missing_ok=True)
            outcome = attempt()
        recorder.ended(trial, outcome)
    finally:
        recorder.close()
    shutil.rmtree(folder / "chunks", ignore_errors=True)
