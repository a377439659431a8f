"""What all experiment scripts share: flags -> base config -> plans -> run -> tables and exit code.

What is imported here, and so by a script beside its flags, needs neither PyTorch nor Ray: help, a flag that is none and
a folder in use are answered before they are imported.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import tyro

from condkd_ray.commands.console.exit_codes import ended, exit_codes, show, speak
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.report import Tell, tell_results
from condkd_ray.commands.teacher_flags import TeacherFlags
from condkd_ray.core.locks import claim_early
from condkd_ray.runs.arms import BOTH, PRIOR, Arm, Prior, arm, spread
from condkd_ray.runs.options import Options
from condkd_ray.trial.plan import Plan
from condkd_ray.trial.subset import TestRounds

if TYPE_CHECKING:
    from condkd_ray.report.statistics import Baseline
    from condkd_ray.trial.artifacts import Workshop
    from condkd_ray.trial.config import TrialConfig

__all__ = ["Flags", "Plan", "Plans", "arm", "command_line", "run"]

Plans = Iterable[Plan]
"""Trials of an experiment."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Flags(TeacherFlags, Options):
    """Flags common to all experiments. Anything else of a trial's config can be set by a YAML file, `--config`."""

    ipcs: tuple[int, ...] = (1, 5, 10)
    """Condensed images per class."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the trials; a condensed set has its trial's seed."""
    host: str | None = None
    """A published system to build all arms on: its inversion, memory, loss, student recipe and length. Those there are:
    `condkd methods --published`. With --inversion instead, that inversion stands beside this project's own recipe."""
    scale: float | None = None
    """With --host: share of the published optimiser steps that a trial takes; all of them if not given."""
    inversion: str | None = None
    """`fast` if neither this nor --host is given."""
    guidance: str = "discriminator"
    guidance_weight: float | None = None
    """Weight of the guidance in the inversion's loss; the method's default if not given."""
    prior_weight: float = PRIOR.weight
    """Of the tempered class prior, weight x CE(teacher's logits / temperature, class), which the arms mixed_prior,
    guided and guided_only have in the place of the inversion's own. 0: no arm has it, and there is no mixed_prior."""
    prior_temperature: float = PRIOR.temperature
    """Of that prior. Soft targets have a temperature of their own, which is taken with them."""
    condensation: str = "distribution_matching"
    condensed_path: Path | None = None
    """A condensed set of somebody else's: a DC/DSA/DM .pt, a KIP .npz, Parquet, or an image folder."""
    condensed_space: Literal["auto", "unit", "signed", "normalised", "uint8", "zca"] = "auto"
    """Pixel space of that set: [0, 1], [-1, 1], normalised by the teacher's constants, or 0 to 255. `auto` looks at the
    pixels, and asks the teacher where they do not tell."""
    condensed_mean: tuple[float, ...] | None = None
    """Constants with which that set is normalised, where they are not the teacher's: one a channel, in units of [0, 1]
    pixels."""
    condensed_std: tuple[float, ...] | None = None
    condensed_order: tuple[int, ...] | None = None
    """Its classes in another order than the teacher's: the label that images of class k have there, at place k."""
    force_condensed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take it although its pixels or the teacher's answers speak against it."""
    condensed_share: float = 0.5
    """Share of condensed images in the student's batches, in the arms that mix."""
    dataset: str = "digits"
    data_root: Path | None = None
    train_file: str | None = None
    test_file: str | None = None
    size: int | None = None
    """Side the images are resized to."""
    val_fraction: float = 0.0
    """Share of train held out for validation (digits has its own 197)."""
    teacher: str | None = None
    """Architecture of the teacher (`condkd methods --networks`); the card's, that of which the weights have the names,
    or resnet-8-16, if not given."""
    teacher_epochs: int | None = None
    teachers: int = 1
    """The seeds are spread over so many teachers, each trained with another seed: the i-th of --seeds has teacher i mod
    N. With one teacher a difference between arms says nothing about other teachers."""
    student: str = "resnet-8-8"
    rounds: int | None = None
    """Of the student; 12 if not given. With --host the recipe's; or these, with all that it counts in rounds scaled."""
    test_rounds: TestRounds = "subset"
    """Test images measured in each round: `subset`, at most 1000; `full`, all of them (slower), as the published mean
    and variance over rounds need. The final test accuracy is of all in any case."""
    explain: tyro.conf.FlagCreatePairsOff[bool] = False
    """Tell how many trials there are and what they will take, and stop: nothing is trained or written."""
    only: tuple[str, ...] = ()
    """Run only these of the planned trials: (beginnings of) hashes as the tables and records name them."""
    producers: int = 0
    """Processes of each trial that make its images while its student learns; 0: they are made and learnt in turn."""
    staleness: int | None = None
    """With producers: rounds by which they are ahead, and the student that they ask behind; 1 if not given."""
    config: Path | None = None
    """A YAML file of config fields that goes over the flags."""

    def base(self) -> "TrialConfig":
        """The config all arms start from, at the largest IPC. Raises `InputError`: field, value, what is accepted."""
        # What needs PyTorch stands apart, for nobody waits for it who asks for help or has mistyped a flag.
        from condkd_ray.commands.base_config import base_config

        return base_config(self)

    @property
    def prior(self) -> Prior:
        """The class prior of the guided arms and their control. Raises `InputError`."""
        return Prior(self.prior_weight, self.prior_temperature)

    @property
    def mixing(self) -> tuple[Arm, ...]:
        """The arm guided and before it those that it is read against, the nearest last."""
        return ("mixed", "mixed_prior", "guided") if self.prior_weight else ("mixed", "guided")

    def arms_or(self, given: Sequence[Arm] | None, default: Sequence[Arm]) -> Sequence[Arm]:
        """The arms `given`, else those of `default` that there are with this prior: at weight 0 no mixed_prior."""
        return [name for name in default if name not in BOTH or name in self.mixing] if given is None else given

    @property
    def teacher_label(self) -> str:
        """The teacher's architecture, of the flag, the card or by default."""
        from condkd_ray.commands.base_config import teacher_label

        return teacher_label(self)


def command_line(flags: type[T], main: Callable[[T], int], *, own_folder: bool = True) -> None:
    """Parse, run, exit: 0 done, 1 some trials failed, 2 bad input, 3 out of time, 130 interrupted.

    Where flags are `Options`, nobody else may run in `--out`, unless it is not `own_folder`: the program leaves it be.
    """
    with exit_codes():
        given = tyro.cli(flags)
        if own_folder and isinstance(given, Options) and not getattr(given, "explain", False):
            claim_early(given.out, "--out")
        # From here on it takes seconds.
        from condkd_ray.core.environment import set_up_process

        set_up_process(1)
        sys.exit(main(given))


def run(
    name: str,
    question: str,
    plans: Plans,
    flags: Flags,
    *,
    baseline: "Baseline" = "none",
    workshop: "Workshop | None" = None,
    tell: Tell | None = None,
) -> int:
    """Run what is missing of `plans`, write records as trials end, report; each arm is compared with its `baseline`.

    `workshop`: one that has made something of it already, else a new one is made. The exit code: see `command_line`.
    """
    from condkd_ray.runs import experiment

    plans = spread(plans, flags.seeds, flags.teachers)
    speak(flags.verbose)
    if flags.explain:
        show(experiment.explained(name, plans, flags, view=TERMINAL))
        return 0
    kept = {"only": flags.only, "baseline": baseline, "workshop": workshop, "view": TERMINAL}
    result = experiment.run(name, question, plans, flags, **kept)
    tell_results(flags.out, tell=tell)
    return ended(result)
