"""Options of a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro

from condkd_ray.core.task import Task
from condkd_ray.runs.options import Options
from condkd_ray.study.choices import Pruner, Sampler
from condkd_ray.study.objective import Constraint, Objective, check_task, parse_constraints


@dataclass(frozen=True, kw_only=True)
class SearchSpec(Options):
    """Options of a search: strategy, study, and options of its trials. The commands have a flag for each field."""

    trials: int = 24
    """Number of trials to complete, including those of earlier runs of the same command."""
    objective: tuple[str, ...] = ("proxy/agreement",)
    """Metrics to optimise. The first, by which trials are stopped early, is proxy/agreement, proxy/kl or
    student/val_accuracy, in segmentation student/val_miou. Others, for a Pareto front, may also be time/wall_seconds,
    time/cpu_seconds or memory/bytes. Test accuracy and test mean IoU are refused."""
    constraint: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Limit such as memory/bytes<=2000000 or time/wall_seconds<=30, on any metric that can be an
    objective. A trial that exceeds one is never the best, and the sampler, tpe or gp, learns to avoid such trials."""
    sampler: Sampler | None = None
    """The sampler; tpe if not given. With --population, only random is accepted, and is the default."""
    sampler_seed: int = 0
    """Seed of the sampler's draws."""
    pruner: Pruner = "none"
    """Rule that stops poor trials early."""
    population: int = 0
    """Number of members of a population, which replaces `--trials`: after every `--generation-rounds` rounds, the worst
    quarter copies the states of some of the best and continues with other values of the open leaves. 0: no
    population."""
    generation_rounds: int = 2
    """Number of rounds of one generation of a population."""
    least_rounds: int = 3
    """Number of rounds before which no trial is stopped."""
    gpu_hours: float | None = None
    """GPUs times hours that trials may hold, over all runs of this search. When they are spent no trial starts, and
    each running one stops after its round, with a checkpoint."""
    study: str = "search"
    """Name of the study in its storage."""
    study_storage: str | None = None
    """A journal file, sqlite:///FILE or postgresql://USER@HOST/NAME; `study.journal` in `--out`
    if not given."""
    learn_from: tuple[str, ...] = ()
    """STORAGE#NAME of earlier studies, whose complete trials of this space are used from the start."""
    points: Path | None = None
    """File with a YAML list of mappings from parameters to values, which are tried first."""

    @property
    def chosen_sampler(self) -> Sampler:
        """The sampler: `sampler`, or its default."""
        return self.sampler or ("random" if self.population else "tpe")

    @property
    def wanted(self) -> int:
        """Number of all trials: members of the population, or `trials`."""
        return self.population or self.trials

    @cached_property
    def parsed_objective(self) -> Objective:
        """`objective`, parsed. Raises `InputError` for a metric that is not accepted."""
        return Objective(self.objective)

    def check_task(self, task: Task) -> None:
        """Raise `InputError` if an objective or a constraint is not measured on data of this task."""
        check_task((*self.parsed_objective.names, *(one.name for one in self.parsed_constraints)), task)

    @cached_property
    def parsed_constraints(self) -> Sequence[Constraint]:
        """`constraint`, parsed. Raises `InputError` for a limit that is not accepted."""
        return parse_constraints(self.constraint)
