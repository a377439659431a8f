"""A search: Optuna proposes configs of a space, the cluster runs them, and a study in the output folder keeps them."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FixedTrial

from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.files import delete_trials, empty
from condkd_ray.cluster.options import ClusterOptions, check_resources
from condkd_ray.core.environment import default_device
from condkd_ray.core.method import InputError, require
from condkd_ray.core.records import read_records
from condkd_ray.core.storage import check_writable
from condkd_ray.core.view import SILENT, View
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.report.statistics import UNGUIDED
from condkd_ray.runs import experiment
from condkd_ray.runs.estimate import explain_search
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.runs.recorder import KEY
from condkd_ray.runs.search_driver import PopulationDriver, SearchDriver, SearchRecorder
from condkd_ray.runs.search_records import of_study
from condkd_ray.runs.search_spec import SearchSpec
from condkd_ray.study.choices import Pruner, Sampler
from condkd_ray.study.points import Point, left_open, points_of
from condkd_ray.study.population import Population, check_population
from condkd_ray.study.space import Open, close, default, leaves, plugin_classes
from condkd_ray.study.storage import exists, names_at, open_storage, quiet, stored_study
from condkd_ray.study.strategies import check_pruner, check_sampler, make_pruner
from condkd_ray.study.study import Study, check_earlier
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.device_pool import check_round_fits
from condkd_ray.trial.hardware import CPU, settled
from condkd_ray.trial.plan import Plan

log = logging.getLogger(__name__)


def run(
    question: str, tree: dict[str, Any], spec: SearchSpec, *, workshop: Workshop | None = None, view: View = SILENT
) -> RunResult:
    """Run the missing trials of a search of the space `tree`, and write the results.

    `question`: shown in the report. `workshop`: makes teachers and condensed sets; a new one if not given. Raises
    `InputError` for a space or options that cannot be used, before anything is written, and `ClusterError` if Ray does
    not start or is lost.
    """
    deadline = time.time() + spec.budget_seconds
    workshop = workshop or Workshop(spec.cache, device=default_device(), view=view)
    known = _check_all(tree, spec, workshop)
    if spec.study_storage is not None:
        open_storage(spec.study_storage, spec.out)
    open_folder(spec.out, "search", fresh=spec.fresh)
    if spec.storage is not None:
        check_writable(spec.storage_root)
    study = study_of(tree, spec)
    _learn(study, known)
    with connect(spec.address, view=view):
        # Imported here, because these modules import Ray, which takes a second.
        from condkd_ray.cluster import search as ray_search
        from condkd_ray.cluster.hardware import trial_hardware
        from condkd_ray.cluster.module_check import check_modules, check_plugins
        from condkd_ray.cluster.storage_check import check_reach

        check_reach(spec.storage_root, spec.storage_flag)
        check_modules(experiment.own_modules(_modules(tree), workshop))
        check_plugins(plugin_classes(tree))
        check_resources(spec.cpus_per_trial, spec.gpus_per_trial, spec.resources)
        hardware, cluster = trial_hardware(spec.gpus_per_trial), spec.of_cluster(deadline)

        check_pool = pool_check(cluster, spec, workshop)
        check_pool(default(tree))
        _check_points(tree, spec, known.points, check_pool)
        if spec.fresh:
            empty(spec.storage_root)
        if "precision" not in leaves(tree):
            study.keep_to(settled(default(tree), hardware).precision)
        budget = None
        if spec.gpu_hours is not None:
            budget = ray_search.GpuBudget(3600 * spec.gpu_hours, study.gpu_seconds, study.keep_gpu_seconds)
        # The population precedes the recorder, because it adds its members to the study.
        population = None
        if spec.population:
            sizes = {"size": spec.population, "rounds": spec.generation_rounds, "total": default(tree).total_rounds}
            population = Population(study, tree, **sizes, seed=spec.sampler_seed)
        recorder = SearchRecorder(question, study, tree, workshop, spec, view, hardware=hardware, fits=check_pool)
        # This follows the recorder, which restores lost trials: points that were tried are not tried again.
        study.suggest_first(known.points)
        driver = PopulationDriver(recorder, population) if population else SearchDriver(recorder)
        try:
            complete = ray_search.search(driver, cluster, budget)
        finally:
            recorder.records.close()
        recorder.describe(over=True)
        if complete and isinstance(driver, PopulationDriver):
            delete_trials(spec.storage_root, driver.leftovers())
    budgets = {"time": time.time() >= deadline, "GPU": budget is not None and budget.spent}
    return RunResult(spec.out, complete, recorder.records.failed, tuple(name for name, over in budgets.items() if over))


def pool_check(cluster: ClusterOptions, spec: SearchSpec, workshop: Workshop) -> Callable[[TrialConfig], None]:
    """Return a function that raises `InputError` for a config if the pool cannot hold the images of trials like it.

    It assumes as many equal trials as run at once: whether a proposal is accepted does not depend on which others run.
    """
    from condkd_ray.cluster.pool.limits import check_limit, planned_round

    def check_pool(config: TrialConfig) -> None:
        plan = Plan("", config.ipc, config.seed, config, spec.share)
        check_limit(cluster, [config], [planned_round(plan, workshop.data(config))] * spec.wanted)

    return check_pool


def explained(tree: dict[str, Any], spec: SearchSpec, *, view: View = SILENT) -> str:
    """Return the estimate of the rest of a search as text. Raises `InputError` as `run` would."""
    _check_all(tree, spec, Workshop(spec.cache, view=view))
    # With --fresh the study is new too, unless its storage is elsewhere.
    starts_over, ended = spec.fresh and spec.study_storage is None, 0
    if not starts_over:
        names = names_at(spec.study_storage, spec.out)
        own = of_study(read_records(spec.out), spec.study, alone=set(names) <= {spec.study})
        keys = {record.config_hash for record in own.values()}
        if spec.study in names:
            # Trials that the study has lost have records; so has a trial of which only the key was lost.
            keys |= {trial.user_attrs[KEY] for trial in study_of(tree, spec).finished if KEY in trial.user_attrs}
        ended = len(keys)
    shortest = 1.0 if spec.pruner == "none" else spec.least_rounds / _rounds(tree)
    kept = {"trials": spec.wanted - ended, "shortest": min(1.0, shortest)}
    return explain_search(tree, spec, default_device(), view, **kept)


def check(tree: dict[str, Any], spec: SearchSpec) -> None:
    """Raise `InputError` for a space or options that a search does not accept."""
    spec.check()
    assert spec.parsed_objective
    require(spec.trials >= 1, "--trials", spec.trials, "an integer >= 1")
    hours, gpus = spec.gpu_hours, spec.gpus_per_trial
    require(hours is None or hours > 0, "--gpu-hours", hours, "a number > 0")
    accepted = "a number > 0, because trials without GPUs never use up the budget"
    require(hours is None or gpus > 0, "--gpus-per-trial with --gpu-hours", gpus, accepted)
    require(spec.least_rounds >= 1, "--least-rounds", spec.least_rounds, "an integer >= 1")
    require(bool(spec.study), "--study", spec.study, "a name")
    require(spec.sampler_seed >= 0, "--sampler-seed", spec.sampler_seed, "an integer >= 0")
    for flag, value, kinds in (("--sampler", spec.chosen_sampler, Sampler), ("--pruner", spec.pruner, Pruner)):
        require(value in get_args(kinds), flag, value, ", ".join(get_args(kinds)))
    require(bool(leaves(tree)), "open leaves of the space", 0, "at least one, such as `weight: !log_uniform [1, 100]`")
    plugin_classes(tree)  # refuses names that no method has
    spec.check_task(default(tree).data.task)
    check_sampler(spec.chosen_sampler, tree, constrained=bool(spec.parsed_constraints))
    check_pruner(spec.pruner, spec.parsed_objective)
    within = spec.pruner == "none" or spec.least_rounds <= _rounds(tree)
    require(
        within, "--least-rounds with --pruner", spec.least_rounds, f"at most {_rounds(tree)}, the rounds of a trial"
    )
    if spec.population:
        _check_population(tree, spec)
    if not gpus:
        # Check the space's default; other configs are checked when they are proposed.
        settled(default(tree), CPU)


@dataclass(frozen=True)
class Known:
    """Inputs of a search that exist before its first trial."""

    points: Sequence[Point]
    """Points to try first."""
    earlier: Mapping[str, optuna.Study]
    """Studies to learn from, by their STORAGE#NAME."""


def _check_all(tree: dict[str, Any], spec: SearchSpec, workshop: Workshop) -> Known:
    """Check the space, the options, the points and the teacher, before anything is written. Raises `InputError`."""
    check(tree, spec)
    known = Known(_points(tree, spec), earlier_studies(spec))
    _check_device_pool(tree, spec, workshop)
    _check_configs(tree, spec, known.points, workshop)
    # Check the teacher of the space's default; other teachers are checked when they are proposed.
    workshop.check_teacher(default(tree))
    experiment.own_modules(_modules(tree), workshop)
    return known


def _modules(tree: dict[str, Any]) -> list[str | None]:
    """Return the names of the users' own teacher modules that configs of a space can contain; None: another teacher.

    Raises `InputError` if a value of an open `teacher/module` is no name.
    """
    leaf = leaves(tree).get("teacher/module")
    if leaf is None:
        return [default(tree).teacher.module]
    return [from_tree({"teacher": {"module": value}}, "search space").teacher.module for value in leaf.values]


def _learn(study: Study, known: Known) -> None:
    for place, other in known.earlier.items():
        log.info(f"{study.learn_from(other)} trials taken over from {place}")


def _check_device_pool(tree: dict[str, Any], spec: SearchSpec, workshop: Workshop) -> None:
    """Raise `InputError` if a round of the space's default exceeds the limit of samples on a GPU.

    Other configs are checked when they are proposed.
    """
    if spec.device_pool_bytes is not None:
        config = default(tree)
        check_round_fits(spec.device_pool_bytes, config, workshop.data(config))


def _check_population(tree: dict[str, Any], spec: SearchSpec) -> None:
    check_population(spec.population, spec.generation_rounds, _rounds(tree), tree, spec.parsed_objective)
    require(spec.chosen_sampler == "random", "--sampler with --population", spec.sampler, "random")
    others = {"pruner": "none", "constraint": (), "points": None, "learn_from": (), "share": "trial"}
    for name, accepted in others.items():
        given, flag = getattr(spec, name), name.replace("_", "-")
        require(given == accepted, f"--{flag} with --population", given, accepted or "none")


def study_of(tree: dict[str, Any], spec: SearchSpec) -> Study:
    """Return the study of a search with these options, which is new or was left by an earlier run.

    Raises `InputError` if the storage cannot be used, or if the study has other settings.
    """
    return Study(
        *(open_storage(spec.study_storage, spec.out), spec.study, tree, spec.parsed_objective),
        sampler=spec.chosen_sampler,
        seed=spec.sampler_seed,
        pruner=make_pruner(spec.pruner, least=spec.least_rounds, most=_rounds(tree)),
        constraints=spec.parsed_constraints,
        population=(spec.population, spec.generation_rounds) if spec.population else (),
    )


def _rounds(tree: dict[str, Any]) -> int:
    """Return the rounds of the longest trial. Raises `InputError` for an invalid number of rounds."""
    rounds = tree.get("rounds", TrialConfig().rounds)
    values = rounds.values if isinstance(rounds, Open) else (rounds,)
    return max(from_tree({"rounds": value}, "search space").rounds for value in values)


def earlier_studies(spec: SearchSpec) -> dict[str, optuna.Study]:
    """Return copies of the studies to learn from, by STORAGE#NAME. Creates no file.

    Raises `InputError` if a study does not exist or has other objectives.
    """
    found = {}
    for place in spec.learn_from:
        storage, _, name = place.rpartition("#")
        accepted = "STORAGE#NAME of an earlier study"
        require(exists(storage or place, spec.out), "--learn-from", place, f"{accepted}, which exists")
        there = open_storage(storage or place, spec.out)
        study = stored_study(there, name, place)
        check_earlier(study, spec.parsed_objective)
        with quiet():
            # A copy in memory, because the study's folder may be moved aside.
            memory = InMemoryStorage()
            optuna.copy_study(from_study_name=study.study_name, from_storage=there, to_storage=memory)
            found[place] = optuna.load_study(study_name=study.study_name, storage=memory)
    return found


def _points(tree: dict[str, Any], spec: SearchSpec) -> list[Point]:
    """Return the points to try first. Raises `InputError` for the first point that does not fit the space."""
    if spec.points is None:
        return []
    path, checked = spec.points, points_of(tree, spec.points)
    if len(checked) > spec.wanted:
        log.info(f"{path} has {len(checked)} points: with --trials {spec.wanted} the last ones are not tried yet")
    return checked


def _check_configs(tree: dict[str, Any], spec: SearchSpec, points: Sequence[Point], workshop: Workshop) -> None:
    """Raise `InputError` if the config of a point that leaves no leaf open cannot be run."""

    def check_config(config: TrialConfig) -> None:
        workshop.check(config)
        if not spec.gpus_per_trial:
            settled(config, CPU)

    _check_points(tree, spec, points, check_config)


def _check_points(
    tree: dict[str, Any], spec: SearchSpec, points: Sequence[Point], check_config: Callable[[TrialConfig], None]
) -> None:
    """Call `check_config` for each point that leaves no leaf open. Raises its `InputError` with the point's number."""
    for number, point in enumerate(points, 1):
        if left_open(tree, point):
            continue
        try:
            check_config(close(tree, FixedTrial(point)))
        except InputError as error:
            raise InputError(f"point {number} of {spec.points}: {error}") from None


def confirm(
    tree: dict[str, Any], spec: SearchSpec, *, best: int, seeds: Sequence[int], view: View = SILENT
) -> RunResult:
    """Run the best trials of a finished search with other seeds, and the space's default, and compare them.

    Each guided trial among the best is also run without guidance, with all other values as the search chose them, the
    class prior included: only the gain over this trial comes from guidance. Results are in the folder `confirmed` in
    the folder of the search. Raises `InputError` if `best` is below 1, or if `seeds` has the seed of the search or
    repeats.
    """
    used = default(tree).seed
    require(best >= 1, "--best", best, "an integer >= 1")
    require(used not in seeds and len(set(seeds)) == len(seeds) > 0, "--new-seeds", seeds, f"seeds other than {used}")
    study = study_of(tree, spec)
    arms = {"default": default(tree)}
    chosen = {f"trial {trial.number}": study.proposal(trial).config for trial in study.ranked[:best]}
    arms |= chosen | {
        f"{arm}{UNGUIDED}": dataclasses.replace(config, guidance=NoGuidance())
        for arm, config in chosen.items()
        if not isinstance(config.guidance, NoGuidance)
    }
    twins = {config: arm for arm, config in reversed(arms.items())}
    plans = [
        Plan(arm, config.ipc, seed, dataclasses.replace(config, seed=seed), spec.share)
        for config, arm in reversed(twins.items())
        for seed in seeds
    ]
    kept = {field.name: getattr(spec, field.name) for field in dataclasses.fields(Options)}
    apart = {"out": spec.out / "confirmed", "storage": spec.storage and _below(spec.storage, "confirmed")}
    question = f"Are the best {best} trials of the search better than the default with new seeds?"
    return experiment.run("confirm", question, plans, Options(**kept | apart), baseline="default", view=view)


def _below(storage: str, name: str) -> str:
    """Return the address of the folder `name` in a storage; the address may end with options after a question mark."""
    path, mark, options = storage.partition("?")
    return f"{path}/{name}{mark}{options}"
