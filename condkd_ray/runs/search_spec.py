"""How a space is searched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import tyro

from condkd_ray.runs.options import Options
from condkd_ray.study.choices import Pruner, Sampler
from condkd_ray.study.objective import Constraint, Objective, parse_constraints


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
