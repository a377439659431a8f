"""A search: Optuna proposes configs of a space, the cluster runs them, and the study in the output folder remembers."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from condkd_ray.cluster.connection.connect import connect
from condkd_ray.cluster.connection.storage_check import check_reach
from condkd_ray.cluster.driver.gpu_budget import GpuBudget
from condkd_ray.cluster.driver.search import search as run_search
from condkd_ray.cluster.worker.paths import bury, empty
from condkd_ray.core.environment import default_device
from condkd_ray.core.method import InputError, require
from condkd_ray.core.storage import check_writable
from condkd_ray.core.view import SILENT, View
from condkd_ray.runs.estimate.estimate import explain_search
from condkd_ray.runs.options import Options, RunResult
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.runs.population_driver import PopulationDriver
from condkd_ray.runs.search_driver import SearchDriver, SearchRecorder
from condkd_ray.study.objective import Constraint, Objective, parse_constraints
from condkd_ray.study.population import Population, check_population
from condkd_ray.study.space import default, leaves
from condkd_ray.study.storage import holds, open_storage, stored_study
from condkd_ray.study.strategies import Pruner, Sampler, check_pruner, check_sampler, make_pruner
from condkd_ray.study.study import Study
from condkd_ray.trial.artifacts import Workshop

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchSpec(Options):
    """How a space is searched, in which study, and where its trials run. The commands have a flag for each field."""

    trials: int = 24
    """Trials that shall have come to an end, those of earlier runs of the same command included."""
    objective: tuple[str, ...] = ("proxy/agreement",)
    """What is looked at, the first for stopping early too: proxy/agreement, proxy/kl or student/val_accuracy; then
    also time/wall_seconds, time/cpu_seconds, memory/bytes, for a Pareto front. Never test accuracy."""
    constraint: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Such as memory/bytes<=2000000 or time/wall_seconds<=30: what breaks it is never the best, and its sampler, tpe or
    gp, learns to keep to it. Of any name that can be an objective; repeatable."""
    sampler: Sampler | None = None
    """tpe if not given; of a population random, and nothing else."""
    sampler_seed: int = 0
    pruner: Pruner = "none"
    """Who stops poor trials early."""
    population: int = 0
    """So many trials at once in place of `--trials`: after every `--generation-rounds` the worst quarter takes over the
    state of some of the best and goes on with other values of the open leaves. 0: none."""
    generation_rounds: int = 2
    least_rounds: int = 3
    """Rounds before which no trial is stopped."""
    gpu_hours: float | None = None
    """GPUs times hours that trials may hold, in all runs of this search. When they are spent, no trial starts, and each
    one that runs stops after its round, with a checkpoint."""
    study: str = "search"
    """The study's name in its storage."""
    study_storage: str | None = None
    """A journal file, sqlite:///FILE or postgresql://USER@HOST/NAME; `study.journal` in `--out` if not given."""
    learn_from: tuple[str, ...] = ()
    """STORAGE#NAME of earlier studies, whose complete trials of this space are known from the start."""
    points: Path | None = None
    """A YAML list of mappings from parameters to values, that are tried first."""

    @property
    def chosen_sampler(self) -> Sampler:
        """Who proposes."""
        return self.sampler or ("random" if self.population else "tpe")

    @property
    def wanted(self) -> int:
        """Trials in all."""
        return self.population or self.trials

    @cached_property
    def parsed_objective(self) -> Objective:
        """`objective`, checked. Raises `InputError`."""
        return Objective(self.objective)

    @cached_property
    def parsed_constraints(self) -> Sequence[Constraint]:
        """`constraint`, parsed. Raises `InputError`."""
        return parse_constraints(self.constraint)


def run(question: str, tree: dict[str, Any], spec: SearchSpec, *, view: View = SILENT) -> RunResult:
    """Run what is missing of a search of the space `tree`, and write down what came of it. Raises `InputError`."""
    deadline = time.time() + spec.budget_seconds
    check(tree, spec)
    workshop = Workshop(spec.cache, device=default_device(), view=view)
    open_folder(spec.out, "search", fresh=spec.fresh)
    if spec.storage is not None:
        check_writable(spec.place)
    if spec.fresh:
        empty(spec.place)
    study = study_of(tree, spec)
    _teach(study, spec)
    with connect(spec.address, view=view):
        check_reach(spec.place, spec.place_flag)
        budget = _gpu_budget(study, spec)
        given = (question, study, spec.parsed_objective, tree, workshop, spec)
        population = _population(study, tree, spec) if spec.population else None
        recorder = SearchRecorder(*given, spec.wanted, spec.parsed_constraints, view)
        driver = PopulationDriver(recorder, population) if population else SearchDriver(recorder, spec.trials)
        try:
            complete = run_search(driver, spec.of_cluster(deadline), budget)
        finally:
            recorder.close()
        recorder.describe(over=True)
        if complete and isinstance(driver, PopulationDriver):
            bury(spec.place, driver.leftovers())
    budgets = {"time": time.time() >= deadline, "GPU": budget is not None and budget.spent}
    return RunResult(spec.out, complete, recorder.failed, tuple(name for name, over in budgets.items() if over))


def explained(tree: dict[str, Any], spec: SearchSpec, *, view: View = SILENT) -> str:
    """What the rest of a search will take, as text. Raises `InputError` as `run` would."""
    check(tree, spec)
    # A fresh folder has a fresh study, unless that lies elsewhere.
    anew, ended = spec.fresh and spec.study_storage is None, 0
    if not anew and holds(spec.study_storage, spec.out, spec.study):
        ended = len(study_of(tree, spec).finished)
    shortest = 1.0 if spec.pruner == "none" else spec.least_rounds / _rounds(tree)
    kept = {"trials": spec.wanted - ended, "shortest": min(1.0, shortest)}
    return explain_search(tree, spec, default_device(), view, **kept)


def check(tree: dict[str, Any], spec: SearchSpec) -> None:
    """Raise `InputError` for what cannot be searched, or not so."""
    spec.check()
    assert spec.parsed_objective
    require(spec.trials >= 1, "--trials", spec.trials, "an integer >= 1")
    hours, gpus = spec.gpu_hours, spec.gpus_per_trial
    require(hours is None or hours > 0, "--gpu-hours", hours, "a number > 0")
    require(hours is None or gpus > 0, "--gpus-per-trial with --gpu-hours", gpus, "a number > 0: they would never end")
    require(spec.least_rounds >= 1, "--least-rounds", spec.least_rounds, "an integer >= 1")
    require(bool(leaves(tree)), "open leaves of the space", 0, "at least one, such as `weight: !log_uniform [1, 100]`")
    check_sampler(spec.chosen_sampler, tree, constrained=bool(spec.parsed_constraints))
    check_pruner(spec.pruner, spec.parsed_objective)
    if spec.population:
        _check_population(tree, spec)


def _check_population(tree: dict[str, Any], spec: SearchSpec) -> None:
    check_population(spec.population, spec.generation_rounds, _rounds(tree), tree, spec.parsed_objective)
    require(spec.chosen_sampler == "random", "--sampler with --population", spec.sampler, "random")
    others = {"pruner": "none", "constraint": (), "points": None, "learn_from": (), "share": "trial"}
    for name, accepted in others.items():
        given, flag = getattr(spec, name), name.replace("_", "-")
        require(given == accepted, f"--{flag} with --population", given, accepted or "none")


def _population(study: Study, tree: dict[str, Any], spec: SearchSpec) -> Population:
    sizes = {"size": spec.population, "rounds": spec.generation_rounds, "total": default(tree).total_rounds}
    return Population(study, tree, **sizes, seed=spec.sampler_seed)


def _gpu_budget(study: Study, spec: SearchSpec) -> GpuBudget | None:
    if spec.gpu_hours is None:
        return None
    return GpuBudget(3600 * spec.gpu_hours, study.gpu_seconds, study.keep_gpu_seconds)


def study_of(tree: dict[str, Any], spec: SearchSpec) -> Study:
    """The study that a search of this spec writes, new or as it was left."""
    return Study(
        *(open_storage(spec.study_storage, spec.out), spec.study, tree, spec.parsed_objective),
        sampler=spec.chosen_sampler,
        seed=spec.sampler_seed,
        pruner=make_pruner(spec.pruner, least=spec.least_rounds, most=_rounds(tree)),
        constraints=spec.parsed_constraints,
        population=(spec.population, spec.generation_rounds) if spec.population else (),
    )


def _rounds(tree: dict[str, Any]) -> int:
    rounds = tree.get("rounds", 12)
    return rounds if isinstance(rounds, int) else max(rounds.values)


def _teach(study: Study, spec: SearchSpec) -> None:
    for place in spec.learn_from:
        storage, _, name = place.rpartition("#")
        other = stored_study(open_storage(storage or place, spec.out), name, place)
        log.info(f"{study.learn_from(other)} trials known from {place}")
    if spec.points is not None:
        study.suggest_first(_points(spec.points))


def _points(path: Path) -> list[Mapping[str, Any]]:
    try:
        points = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--points is {str(path)!r}, which cannot be read ({error}); accepted: a YAML list") from None
    fine = isinstance(points, list) and all(isinstance(point, dict) for point in points)
    require(fine, "--points", str(path), "a YAML list of mappings from parameters to values")
    return points
