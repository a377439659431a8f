"""A search: Optuna proposes configs of a space, the cluster runs them, and the study in the output folder remembers."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from condkd_ray import experiment, report
from condkd_ray.artifacts import Workshop
from condkd_ray.bookkeeping import Watch, describe_experiment, teacher_line
from condkd_ray.cluster.connect import connect
from condkd_ray.cluster.reach import check_reach
from condkd_ray.cluster.searching import search as run_search
from condkd_ray.cluster.terms import Terms
from condkd_ray.cluster.trials import Trial
from condkd_ray.config import dump
from condkd_ray.experiment import Flags
from condkd_ray.explain import explain_search
from condkd_ray.flags import RunFlags
from condkd_ray.identity import trial_hash
from condkd_ray.method import InputError, Metrics, require
from condkd_ray.plans import Plan
from condkd_ray.report.images import write_grid
from condkd_ray.report.records import finished, grid_path, write_manifest
from condkd_ray.run import Outcome
from condkd_ray.shell import CpuClock, open_folder, say
from condkd_ray.space import default, leaves, read
from condkd_ray.storage import check_writable
from condkd_ray.study import Objective, Proposal, Pruner, Sampler, Study, open_storage, stored_study
from condkd_ray.study.pruners import check_pruner, make_pruner
from condkd_ray.study.samplers import check_sampler
from condkd_ray.study.storages import JOURNAL

ARTIFACTS = "artifacts"
"""Folder of the images and configs that the dashboard shows beside a trial."""


@dataclass(frozen=True, kw_only=True)
class SearchFlags(RunFlags):
    """Flags of every search."""

    trials: int = 24
    """Trials that shall have come to an end, those of earlier runs of the same command included."""
    objective: tuple[str, ...] = ("proxy/agreement",)
    """What is looked at, the first for stopping early too: proxy/agreement, proxy/kl or student/val_accuracy; then
    also time/wall_seconds, time/cpu_seconds, memory/bytes, for a Pareto front. Never test accuracy."""
    sampler: Sampler = "tpe"
    sampler_seed: int = 0
    pruner: Pruner = "none"
    """Who stops poor trials early."""
    least_rounds: int = 3
    """Rounds before which no trial is stopped."""
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
    objective, deadline = Objective(flags.objective), time.time() + flags.budget_seconds
    _check(tree, flags, objective)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if flags.explain:
        print(_explained(tree, flags, objective, device))
        return 0
    workshop = Workshop(flags.cache, device=device, say=say)
    open_folder(flags.out, "search", fresh=flags.fresh)
    if flags.storage is not None:
        check_writable(flags.place)
    study = Study(
        *(open_storage(flags.study_storage, flags.out), flags.study, tree, objective),
        sampler=flags.sampler,
        seed=flags.sampler_seed,
        pruner=make_pruner(flags.pruner, least=flags.least_rounds, most=_rounds(tree)),
    )
    _teach(study, flags)
    with connect(flags.address):
        check_reach(flags.place, "--out" if flags.storage is None else "--storage")
        clock, guide = CpuClock(), Explorer(question, study, objective, tree, workshop, flags)
        try:
            complete = run_search(guide, Terms.of(flags, deadline))
        finally:
            guide.close()
        guide.describe(clock.look())
    print(report.build(flags.out))
    say(f"study, records and tables: {flags.out}; condkd dashboard {flags.out}")
    if complete:
        return 1 if guide.failed else 0
    spent = time.time() >= deadline
    say(f"{'the time budget is spent' if spent else 'interrupted'}; the same command continues")
    return 3 if spent else 130


def _explained(tree: dict[str, Any], flags: SearchFlags, objective: Objective, device: str) -> str:
    stored = flags.study_storage is not None or (flags.out / JOURNAL).is_file()
    storage = open_storage(flags.study_storage, flags.out) if stored else InMemoryStorage()
    ended = len(Study(storage, flags.study, tree, objective).finished)
    shortest = 1.0 if flags.pruner == "none" else flags.least_rounds / _rounds(tree)
    return explain_search(tree, flags, device, trials=flags.trials - ended, shortest=min(1.0, shortest))


def confirm(tree: dict[str, Any], flags: SearchFlags, *, best: int, seeds: Sequence[int]) -> int:
    """Run the best trials of a finished search again with other seeds, beside the space's default, and compare these.

    Results lie in `confirmed` below the search's. The exit code: as an experiment's.
    """
    seen = default(tree).seed
    require(best >= 1, "--best", best, "an integer >= 1")
    require(seen not in seeds and len(set(seeds)) == len(seeds) > 0, "--new-seeds", seeds, f"seeds other than {seen}")
    study = Study(open_storage(flags.study_storage, flags.out), flags.study, tree, Objective(flags.objective))
    arms = {"default": default(tree)}
    arms |= {f"trial {trial.number}": study.proposal(trial).config for trial in study.ranked[:best]}
    twins = {config: arm for arm, config in reversed(arms.items())}
    plans = [
        Plan(arm, getattr(config.condensation, "ipc", 0), seed, dataclasses.replace(config, seed=seed), flags.share)
        for config, arm in reversed(twins.items())
        for seed in seeds
    ]
    kept = {field.name: getattr(flags, field.name) for field in dataclasses.fields(RunFlags)}
    apart = {"out": flags.out / "confirmed", "storage": flags.storage and _below(flags.storage, "confirmed")}
    again = Flags(**kept | apart)
    question = f"Are the best {best} trials of the search better than the default with new seeds?"
    return experiment.run("confirm", question, plans, again, baseline="default")


def _below(storage: str, name: str) -> str:
    """A folder in a storage, whose address may have options behind a question mark."""
    path, mark, options = storage.partition("?")
    return f"{path}/{name}{mark}{options}"


def _check(tree: dict[str, Any], flags: SearchFlags, objective: Objective) -> None:
    require(flags.trials >= 1, "--trials", flags.trials, "an integer >= 1")
    require(flags.least_rounds >= 1, "--least-rounds", flags.least_rounds, "an integer >= 1")
    require(bool(leaves(tree)), "open leaves of the space", 0, "at least one, such as `weight: !log_uniform [1, 100]`")
    check_sampler(flags.sampler, tree)
    check_pruner(flags.pruner, objective)


def _rounds(tree: dict[str, Any]) -> int:
    rounds = tree.get("rounds", 12)
    return rounds if isinstance(rounds, int) else max(rounds.values)


def _teach(study: Study, flags: SearchFlags) -> None:
    for place in flags.learn_from:
        storage, _, name = place.rpartition("#")
        other = stored_study(open_storage(storage or place, flags.out), name, place)
        say(f"{study.learn_from(other)} trials known from {place}")
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


class Explorer:
    """Who decides in a search (`condkd_ray.cluster.searching.Guide`): the study, and what is written down of trials."""

    def __init__(
        self,
        question: str,
        study: Study,
        objective: Objective,
        tree: dict[str, Any],
        workshop: Workshop,
        flags: SearchFlags,
    ) -> None:
        self._question, self._study, self._objective = question, study, objective
        self._tree, self._workshop, self._flags = tree, workshop, flags
        self._plans: dict[str, Plan] = {}
        self._numbers: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._store = FileSystemArtifactStore(_made(flags.out / ARTIFACTS))
        self._again = [*study.left_running(), *self._unrecorded()]
        self._begun = len(study.finished) + len(study.left_running())
        missing = flags.trials - self._begun + len(self._again)
        named = {name.replace("/", "."): leaf for name, leaf in leaves(tree).items()}
        choices = {name: leaf.examples for name, leaf in named.items() if leaf.kind == "choice"}
        ranges = {name: leaf.values for name, leaf in named.items() if leaf.kind != "choice"}
        shown = {"total": missing, "choices": choices, "ranges": ranges}
        self._watch = Watch("search", flags.out, {}, flags.place, **shown)

    @property
    def failed(self) -> int:
        """Trials that came to nothing, of those that this driver heard of."""
        return self._watch.failed

    def propose(self) -> Trial | None:
        """What an earlier driver had begun, then what the study proposes, until there are enough."""
        if self._again:
            return self._trial(self._again.pop(0))
        if self._begun >= self._flags.trials:
            return None
        proposal = self._study.propose(self._workshop.check)
        if proposal is None:
            say(f"the space holds no more than {self._begun} trials, or they are hard to find")
            return None
        self._begun += 1
        return self._trial(proposal)

    def round(self, trial: Trial, metrics: Metrics) -> None:
        """Shown, and told the study."""
        self._watch.round(trial.key, metrics)
        self._last[trial.key] = int(metrics["round"])
        self._study.report(self._numbers[trial.key], int(metrics["round"]), self._objective.now(metrics))

    def goes_on(self, trial: Trial) -> bool:
        """Unless the study's pruner would end it; after its last round a trial is complete."""
        over = self._last.get(trial.key, 0) >= trial.config.total_rounds
        return over or not self._study.should_prune(self._numbers[trial.key])

    def untested(self, trial: Trial, outcome: Outcome) -> None:
        """The study is told how it ended. From here on nothing that decides hears of the trial."""
        number, metrics = self._numbers[trial.key], outcome.metrics
        told = ("time/wall_seconds", "time/cpu_seconds", "memory/bytes")
        self._study.note(number, {name: metrics[name] for name in told if name in metrics})
        self._attach(number, trial, outcome)
        self._study.complete(number, self._objective.values(outcome.history))

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """It has its record."""
        number = self._numbers[trial.key]
        if outcome.status == "finished":
            self._study.complete(number, self._objective.values(outcome.history))
        elif outcome.status == "pruned":
            self._study.prune(number)
        else:
            self._study.fail(number, outcome.reason)
        self._watch.outcome(trial.key, outcome)

    def describe(self, cpu_seconds: float | None = None) -> None:
        """Write the manifest of what has been proposed so far."""
        if not self._plans:
            return
        manifest = describe_experiment(
            "search", self._question, list(self._plans.values()), list(self._plans), self._workshop, self._flags.out
        )
        about = {
            "objective": list(self._objective.names),
            "directions": self._objective.directions,
            "parameters": list(leaves(self._tree)),
        }
        write_manifest(self._flags.out, dataclasses.replace(manifest, search=about, cpu_seconds=cpu_seconds))

    def close(self) -> None:
        """No more will be heard."""
        self._watch.close()

    def _unrecorded(self) -> list[Proposal]:
        """Complete trials whose driver died before it had made their records: only the test is left."""
        done = finished(self._flags.out)
        complete = (trial for trial in self._study.finished if trial.state == TrialState.COMPLETE)
        return [self._study.proposal(trial) for trial in complete if trial.user_attrs["config_hash"] not in done]

    def _trial(self, proposal: Proposal) -> Trial:
        config = proposal.config
        prepared = self._workshop.prepare(config)
        key, ipc = trial_hash(config, prepared, self._flags.share), getattr(config.condensation, "ipc", 0)
        plan = Plan(f"trial {proposal.number}", ipc, config.seed, config, self._flags.share)
        if not self._plans:
            say(teacher_line(describe_experiment("search", "", [plan], [key], self._workshop, self._flags.out)))
        self._plans[key], self._numbers[key] = plan, proposal.number
        self._study.note(proposal.number, {"config_hash": key, "teacher_hash": prepared.hashes["teacher"]})
        self._watch.add(key, plan, prepared)
        self.describe()
        return Trial(key, plan.label, config, prepared, plan.scope)

    def _attach(self, number: int, trial: Trial, outcome: Outcome) -> None:
        """Image grid and whole config, for the dashboard."""
        grid = grid_path(self._flags.out, trial.key)
        if outcome.images is not None and outcome.images_per_class:
            write_grid(grid, outcome.images, outcome.images_per_class)
            self._study.attach(number, grid, self._store)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{trial.key}.yaml"
            path.write_text(dump(trial.config))
            self._study.attach(number, path, self._store)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
