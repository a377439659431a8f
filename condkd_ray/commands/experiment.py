"""The flags that all experiment scripts share, and the function that runs and reports their plans.

Neither this module nor the modules that it imports load PyTorch or Ray. So a script with these flags prints help, and
refuses an unknown flag or a folder in use, without waiting for these imports.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import tyro

from condkd_ray.commands.console.exit_codes import exit_code_of, exit_codes, log_to_stderr, show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.parsing import parse
from condkd_ray.commands.report import Reporter, report_results
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
"""The trials of an experiment."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Flags(TeacherFlags, Options):
    """Flags common to all experiments. A YAML file, `--config`, can set any other field of a trial's config."""

    ipcs: tuple[int, ...] = (1, 5, 10)
    """Condensed images per class (IPC), one or more values; in segmentation, labelled images in all."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the trials; the condensed set of a trial has the same seed."""
    host: str | None = None
    """A published system on which all arms are built: its inversion, memory, loss, student recipe and length.
    `condkd methods --published` lists them. Cannot be combined with --inversion."""
    scale: float | None = None
    """With --host: share of the published optimiser steps that a trial takes; default: 1."""
    inversion: str | None = None
    """The inversion, with this project's own recipe; default: `fast`, or the inversion of --host."""
    guidance: str = "discriminator"
    """The guidance of the guided arms; `condkd methods` lists all."""
    guidance_weight: float | None = None
    """Weight of the guidance in the inversion's loss; default: the method's own."""
    prior_weight: float = PRIOR.weight
    """Weight of the tempered class prior, weight x CE(teacher's logits / temperature, class). It replaces the
    inversion's class prior in the arms mixed_prior, guided and guided_only. 0: it is not used, and the arm mixed_prior
    does not exist."""
    prior_temperature: float = PRIOR.temperature
    """Temperature of that prior. With soft targets, the temperature of the targets is used instead."""
    condensation: str | None = None
    """The method that makes the condensed images; `condkd methods` lists all. Default: distribution_matching; in
    segmentation random_real, a few labelled images."""
    condensed_path: Path | None = None
    """An existing condensed set to import: a DC/DSA/DM .pt, a KIP .npz, Parquet, or an image folder."""
    condensed_space: Literal["auto", "unit", "signed", "normalised", "uint8", "zca"] = "auto"
    """Pixel space of that set: [0, 1], [-1, 1], normalised by the teacher's constants, 0 to 255, or ZCA-whitened.
    `auto` infers it from the pixels, and from the teacher's accuracy if the pixels are ambiguous."""
    condensed_mean: tuple[float, ...] | None = None
    """Mean with which that set is normalised, if not the teacher's: one value per channel, for pixels in [0, 1]."""
    condensed_std: tuple[float, ...] | None = None
    """Standard deviation of that normalisation."""
    condensed_order: tuple[int, ...] | None = None
    """Class order of that set, if not the teacher's: position k holds the label that the set gives to class k."""
    force_condensed: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import the set although its pixels or the teacher's predictions contradict these flags."""
    condensed_share: float = 0.5
    """Share of condensed images in the student's batches, in the arms with both kinds of images."""
    dataset: str = "digits"
    """The data set: digits (bundled), mnist, fashion_mnist, cifar10, cifar100, svhn, parquet, image_folder,
    class_folders; with a class per pixel scenes (bundled), camvid, mask_folders, parquet_masks; or one of a
    plug-in."""
    data_root: Path | None = None
    """Folder of the data set's files; not needed for digits and scenes."""
    train_file: str | None = None
    """Parquet file of the training images: a name in that folder, a path, or a pattern such as train-*.parquet."""
    test_file: str | None = None
    """Parquet file of the test images, likewise."""
    size: int | tuple[int, int] | None = None
    """Size in pixels to which images are resized: one side, or height and width."""
    val_fraction: float = 0.0
    """Share of the training images held out for validation (digits always has 197 validation images)."""
    teacher: str | None = None
    """Architecture of the teacher (`condkd methods --networks`); default: from the card, else from the names of the
    weights, else resnet-8-16; in segmentation deeplab_resnet-14-16."""
    teacher_epochs: int | None = None
    """Epochs of the teacher's training; default: 40 for digits and scenes, 60 for camvid, 8 for cifar10, 5 for mnist
    and fashion_mnist, 10 for others."""
    teachers: int = 1
    """Number of teachers, each trained with another seed, over which the seeds are spread: the i-th of --seeds has
    teacher i mod N. With one teacher, a difference between arms shows nothing about other teachers."""
    student: str | None = None
    """Architecture of the student; `condkd methods --networks` lists all. Default: resnet-8-8; in segmentation
    deeplab_resnet-8-8."""
    rounds: int | None = None
    """Rounds of the student; default: 12, or the rounds of --host. With --host, other lengths in rounds scale alike."""
    test_rounds: TestRounds = "subset"
    """Test images measured in each round: `subset`, at most 1000, in segmentation 100; `full`, all of them (slower), as
    the published mean and variance over rounds require. The final test score always uses all of them."""
    explain: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the number of trials and an estimate of their time, memory and disk space, and stop. Nothing is trained or
    written."""
    only: tuple[str, ...] = ()
    """Run only the planned trials with these hashes, or beginnings of hashes, from the tables and records."""
    producers: int = 0
    """Processes per trial that make its images while its student is trained; 0: one process does both in turns."""
    staleness: int | None = None
    """With producers: number of rounds by which images are made in advance, with a student that is as many rounds
    old; default: 1."""
    config: Path | None = None
    """A YAML file of config fields that override the flags."""

    def base(self) -> "TrialConfig":
        """Return the config from which all arms are derived, at the largest IPC. Raises `InputError` for bad flags."""
        # Imported here because it imports PyTorch: help and mistyped flags must not wait for that.
        from condkd_ray.commands.base_config import base_config

        return base_config(self)

    @property
    def prior(self) -> Prior:
        """The class prior of the arms mixed_prior, guided and guided_only. Raises `InputError` for bad values."""
        return Prior(self.prior_weight, self.prior_temperature)

    @property
    def mixing(self) -> tuple[Arm, ...]:
        """The arms with both kinds of images: the guided arm, preceded by its controls, the closest one last."""
        return ("mixed", "mixed_prior", "guided") if self.prior_weight else ("mixed", "guided")

    def arms_or(self, given: Sequence[Arm] | None, default: Sequence[Arm]) -> Sequence[Arm]:
        """Return the arms `given`, or those of `default` that exist: with prior weight 0 there is no mixed_prior."""
        return [name for name in default if name not in BOTH or name in self.mixing] if given is None else given

    @property
    def student_label(self) -> str:
        """The student's architecture: from the flag, else the default of the data's task."""
        from condkd_ray.commands.base_config import student_label

        return student_label(self)

    @property
    def teacher_label(self) -> str:
        """The teacher's architecture: from the flag, else from the card, else the default.

        Raises `InputError` if the flag or the card cannot be used.
        """
        from condkd_ray.commands.base_config import teacher_label

        return teacher_label(self)


def command_line(flags: type[T], main: Callable[[T], int], *, own_folder: bool = True) -> None:
    """Parse the flags, run `main` and exit with its code.

    Exit codes: 0 done; 1 some trials failed, or an error of `exit_codes` with that code; 2 bad input; 3 the time or GPU
    budget is spent; 130 interrupted.

    If the flags are `Options`, their folder `--out` is locked, so that no other process runs in it. `own_folder`: pass
    False for a program that writes nothing there; the folder is then not locked.
    """
    with exit_codes():
        given: T = parse(flags)
        if own_folder and isinstance(given, Options) and not getattr(given, "explain", False):
            claim_early(given.out, "--out")
        # The next import loads PyTorch, which takes seconds.
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
    report: Reporter | None = None,
) -> int:
    """Run the missing trials of `plans`, write records as they end, report, and return the exit code.

    `baseline`: the arm with which the other arms are compared. `workshop`: makes teachers and condensed sets; a new one
    if not given. `report`: replaces the standard report. The exit codes are those of `command_line`. Raises
    `InputError` for flags or plans that cannot be used.
    """
    from condkd_ray.runs import experiment

    plans = spread(plans, flags.seeds, flags.teachers)
    log_to_stderr(flags.verbose)
    if flags.explain:
        show(experiment.explained(name, plans, flags, only=flags.only, view=TERMINAL))
        return 0
    kept = {"only": flags.only, "baseline": baseline, "workshop": workshop, "view": TERMINAL}
    result = experiment.run(name, question, plans, flags, **kept)
    report_results(flags.out, report=report)
    return exit_code_of(result)
