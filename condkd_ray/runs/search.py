"""A search: Optuna proposes configs of a space, the cluster runs them, and the study in the output folder remembers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
import yaml

from condkd_ray.cluster.connection.connect import connect
from condkd_ray.cluster.connection.storage_check import check_reach
from condkd_ray.cluster.driver.gpu_budget import GpuBudget
from condkd_ray.cluster.driver.search import search as run_search
from condkd_ray.cluster.worker.paths import bury, empty
from condkd_ray.commands.console import TERMINAL
from condkd_ray.commands.console.exit_codes import ended, open_folder, show, speak
from condkd_ray.commands.console.results import tell_results
from condkd_ray.core.method import InputError, require
from condkd_ray.core.storage import check_writable
from condkd_ray.runs.estimate.text import explain_search
from condkd_ray.runs.options import RunFlags
from condkd_ray.runs.plan import cluster_options
from condkd_ray.runs.population_driver import PopulationDriver
from condkd_ray.runs.search_driver import SearchDriver, SearchRecorder
from condkd_ray.study import Objective, Pruner, Sampler, Study, constraints, open_storage, stored_study
from condkd_ray.study.population import Population, check_population
from condkd_ray.study.pruners import check_pruner, make_pruner
from condkd_ray.study.space import default, leaves, read
from condkd_ray.study.storage import holds
from condkd_ray.study.strategies import check_sampler
from condkd_ray.trial.artifacts import Workshop

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchFlags(RunFlags):
    """Flags of every search."""

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
    explain: tyro.conf.FlagCreatePairsOff[bool] = False
    """Tell what the search will take, from probes of the space's corners, and stop: nothing is trained or written."""
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


@dataclass(frozen=True, kw_only=True)
class Search(SearchFlags):
    """Search a space. The same command again goes on: what was running first, from where it stood."""

    space: tyro.conf.Positional[Path]
    """A YAML file of a config with open leaves, such as search_spaces/guidance.yaml."""
    out: Path = Path("runs/search")


def search(command: Search) -> int:
    """`condkd search SPACE`. The exit code: as an experiment's."""
    return run(f"Which {command.space.stem} is best?", read(command.space), command)


def run(question: str, tree: dict[str, Any], flags: SearchFlags) -> int:
    """Run what is missing of a search of the space `tree`, and report. The exit code: as an experiment's."""
    flags.check()
    speak(flags.verbose)
    objective, deadline = Objective(flags.objective), time.time() + flags.budget_seconds
    _check(tree, flags, objective)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flags.explain:
        show(_explained(tree, flags, objective, device))
        return 0
    workshop = Workshop(flags.cache, device=device, view=TERMINAL)
    open_folder(flags.out, "search", fresh=flags.fresh)
    if flags.storage is not None:
        check_writable(flags.place)
    if flags.fresh:
        empty(flags.place)
    study = study_of(tree, flags, objective)
    _teach(study, flags)
    with connect(flags.address, view=TERMINAL):
        check_reach(flags.place, "--out" if flags.storage is None else "--storage")
        budget = _gpu_budget(study, flags)
        limits = constraints.parse(flags.constraint)
        population = _population(study, tree, flags) if flags.population else None
        recorder = SearchRecorder(
            question, study, objective, tree, workshop, flags, flags.wanted, limits, view=TERMINAL
        )
        driver = PopulationDriver(recorder, population) if population else SearchDriver(recorder, flags.trials)
        try:
            complete = run_search(driver, cluster_options(flags, deadline), budget)
        finally:
            recorder.close()
        recorder.describe(over=True)
        if complete and isinstance(driver, PopulationDriver):
            bury(flags.place, driver.leftovers())
    tell_results(flags.out, study=flags.study_storage)
    budgets = {"time": time.time() >= deadline, "GPU": budget is not None and budget.spent}
    return ended(complete, recorder.failed, [name for name, over in budgets.items() if over])


def _check_population(tree: dict[str, Any], flags: SearchFlags, objective: Objective) -> None:
    check_population(flags.population, flags.generation_rounds, _rounds(tree), tree, objective)
    require(flags.chosen_sampler == "random", "--sampler with --population", flags.sampler, "random")
    others = {"pruner": "none", "constraint": (), "points": None, "learn_from": (), "share": "trial"}
    for name, accepted in others.items():
        given, flag = getattr(flags, name), name.replace("_", "-")
        require(given == accepted, f"--{flag} with --population", given, accepted or "none")


def _population(study: Study, tree: dict[str, Any], flags: SearchFlags) -> Population:
    sizes = {"size": flags.population, "rounds": flags.generation_rounds, "total": default(tree).total_rounds}
    return Population(study, tree, **sizes, seed=flags.sampler_seed)


def _gpu_budget(study: Study, flags: SearchFlags) -> GpuBudget | None:
    if flags.gpu_hours is None:
        return None
    return GpuBudget(3600 * flags.gpu_hours, study.gpu_seconds, study.keep_gpu_seconds)


def study_of(tree: dict[str, Any], flags: SearchFlags, objective: Objective) -> Study:
    """The study that a search with these flags writes, new or as it was left."""
    return Study(
        *(open_storage(flags.study_storage, flags.out), flags.study, tree, objective),
        sampler=flags.chosen_sampler,
        seed=flags.sampler_seed,
        pruner=make_pruner(flags.pruner, least=flags.least_rounds, most=_rounds(tree)),
        constraints=constraints.parse(flags.constraint),
        population=(flags.population, flags.generation_rounds) if flags.population else (),
    )


def _explained(tree: dict[str, Any], flags: SearchFlags, objective: Objective, device: str) -> str:
    # A fresh folder has a fresh study, unless that lies elsewhere.
    anew, ended = flags.fresh and flags.study_storage is None, 0
    if not anew and holds(flags.study_storage, flags.out, flags.study):
        ended = len(study_of(tree, flags, objective).finished)
    shortest = 1.0 if flags.pruner == "none" else flags.least_rounds / _rounds(tree)
    return explain_search(tree, flags, device, trials=flags.wanted - ended, shortest=min(1.0, shortest))


def _check(tree: dict[str, Any], flags: SearchFlags, objective: Objective) -> None:
    require(flags.trials >= 1, "--trials", flags.trials, "an integer >= 1")
    hours, gpus = flags.gpu_hours, flags.gpus_per_trial
    require(hours is None or hours > 0, "--gpu-hours", hours, "a number > 0")
    require(hours is None or gpus > 0, "--gpus-per-trial with --gpu-hours", gpus, "a number > 0: they would never end")
    require(flags.least_rounds >= 1, "--least-rounds", flags.least_rounds, "an integer >= 1")
    require(bool(leaves(tree)), "open leaves of the space", 0, "at least one, such as `weight: !log_uniform [1, 100]`")
    check_sampler(flags.chosen_sampler, tree, constrained=bool(constraints.parse(flags.constraint)))
    check_pruner(flags.pruner, objective)
    if flags.population:
        _check_population(tree, flags, objective)


def _rounds(tree: dict[str, Any]) -> int:
    rounds = tree.get("rounds", 12)
    return rounds if isinstance(rounds, int) else max(rounds.values)


def _teach(study: Study, flags: SearchFlags) -> None:
    for place in flags.learn_from:
        storage, _, name = place.rpartition("#")
        other = stored_study(open_storage(storage or place, flags.out), name, place)
        log.info(f"{study.learn_from(other)} trials known from {place}")
    if flags.points is not None:
        study.suggest_first(_points(flags.points))


def _points(path: Path) -> list[Mapping[str, Any]]:
    try:
        points = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--points is {str(path)!r}, which cannot be read ({error}); accepted: a YAML list") from None
    fine = isinstance(points, list) and all(isinstance(point, dict) for point in points)
    require(fine, "--points", str(path), "a YAML list of mappings from parameters to values")
    return points
