"""What all experiment scripts share: flags -> base config -> plans -> run -> tables and exit code."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tyro

from condkd_ray import models
from condkd_ray.commands.console.exit_codes import ended, exit_codes, show, speak
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.report import Tell, tell_results
from condkd_ray.commands.teacher_flags import TeacherFlags
from condkd_ray.core.config import merge, read_tree, to_tree
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import require
from condkd_ray.methods.inversion import AnyInversion, Inversion
from condkd_ray.report.statistics import Baseline
from condkd_ray.runs import experiment
from condkd_ray.runs.options import Options
from condkd_ray.runs.presets import PARTS, arm, check_parts, published, scaled, spread, with_rounds
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.card import with_card
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.evaluation import TestRounds
from condkd_ray.trial.plan import Plan

__all__ = ["Flags", "Plan", "Plans", "arm", "command_line", "run"]

Plans = Iterable[Plan]
"""Trials of an experiment."""

TEACHER_EPOCHS = {"digits": 40, "fashion_mnist": 5, "mnist": 5, "cifar10": 8}
"""Epochs of a good teacher in minutes on one core, 10 for a data set not named here. Measured: `experiments/LOG.md`."""
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

    def base(self) -> TrialConfig:
        """The config all arms start from, at the largest IPC. Raises `InputError`: field, value, what is accepted."""
        accepted = "one or more integers >= 1 (without condensed images is the arm none)"
        require(bool(self.ipcs) and min(self.ipcs) >= 1, "--ipcs", self.ipcs, accepted)
        require(bool(self.seeds) and min(self.seeds) >= 0, "--seeds", self.seeds, "one or more integers >= 0")
        own = {name: getattr(self, name) for name in ("size", "val_fraction", "train_file", "test_file")}
        if self.size is None:
            del own["size"]  # then a card may tell it
        epochs = TEACHER_EPOCHS.get(self.dataset, 10) if self.teacher_epochs is None else self.teacher_epochs
        tree: dict[str, Any] = {
            "data": {"name": self.dataset, "root": self.data_root, **own},
            "teacher": {**self._network(), "training": {"epochs": epochs}},
            "student": to_tree(models.parse(self.student)),
            "condensation": self._condensation(),
            "guidance": {"name": self.guidance},
            "test_rounds": self.test_rounds,
        }
        tree = merge(tree, self.about_teacher())
        tree |= self._own_parts() if self.host is None else self._host_parts(self.host)
        tree["distiller"] |= {"condensed_share": self.condensed_share}
        if self.dataset == "digits" and "width" in tree["inversion"]:
            tree["inversion"]["width"] = 64
        if self.guidance_weight is not None:
            tree["guidance"]["weight"] = self.guidance_weight
        if self.producers or self.staleness is not None:
            staleness = 1 if self.staleness is None else self.staleness
            tree["pipeline"] = {"producers": self.producers, "staleness": staleness}
        if self.config is not None:
            given = read_tree(self.config)
            if self.host is not None:
                check_parts(self.host, given, str(self.config))
            tree = merge(tree, given)
        return from_tree(with_card(tree), "flags")

    @property
    def teacher_label(self) -> str:
        """The teacher's architecture, of the flag, the card or by default."""
        tree = with_card(merge({"teacher": self._network()}, self.given_of_teacher()))
        return models.label(from_tree({"teacher": tree["teacher"]}, "flags").teacher.network)

    def _network(self) -> dict[str, Any]:
        return {} if self.teacher is None else {"network": to_tree(models.parse(self.teacher))}

    def _own_parts(self) -> dict[str, Any]:
        """Inversion, memory and length without a host."""
        require(self.scale is None, "--scale without --host", self.scale, "a published system to scale, --host NAME")
        name = self.inversion or "fast"
        # A name that is none of theirs is refused later, with all that are.
        inversion = {kind.name: kind for kind in get_args(AnyInversion)}.get(name, Inversion)
        rounds = 12 if self.rounds is None else self.rounds
        parts: dict[str, Any] = {"inversion": {"name": name}, "distiller": {}, "rounds": rounds}
        if hasattr(inversion, "width"):
            parts["inversion"]["width"] = inversion.width
        return parts | ({"memory": {"name": "latest"}} if inversion.fresh else {})

    def _host_parts(self, host: str) -> dict[str, Any]:
        """What the published system sets, scaled."""
        accepted = f"one of them: --host {host} has the inversion {published(host).inversion.name}"
        require(self.inversion is None, "--inversion beside --host", self.inversion, accepted)
        both = self.scale is not None and self.rounds is not None
        accepted = f"one of them, for a scale (here {self.scale}) sets the rounds; --scale None takes none"
        require(not both, "--rounds beside --scale", self.rounds, accepted)
        recipe = scaled(published(host), 1.0 if self.scale is None else self.scale)
        if self.rounds is not None:
            recipe = with_rounds(recipe, self.rounds)
        return {part: to_tree(getattr(recipe, part)) for part in PARTS}

    def _condensation(self) -> dict[str, Any]:
        max_ipc = max(self.ipcs)
        if self.condensed_path is not None or self.condensation == "imported":
            require(self.condensed_path is not None, "--condensed-path", None, "the condensed set to import")
            own = {name: getattr(self, f"condensed_{name}") for name in ("path", "space", "mean", "std", "order")}
            return {"name": "imported", "ipc": max_ipc, "force": self.force_condensed} | own
        tree = {"name": self.condensation, "ipc": max_ipc}
        if self.condensation in ("distribution_matching", "trajectory_matching"):
            tree["condensed_together"] = max(max_ipc, 10)
        if self.condensation == "squeeze_recover" and self.dataset == "digits":
            # A pixel, the least there is, is an eighth of these images: it cost a third of the accuracy (LOG.md).
            tree["shift"] = 0.0
        return tree


def command_line(flags: type[T], main: Callable[[T], int]) -> None:
    """Parse, run, exit: 0 done, 1 some trials failed, 2 bad input, 3 out of time, 130 interrupted."""
    set_up_process(1)
    with exit_codes():
        sys.exit(main(tyro.cli(flags)))


def run(
    name: str,
    question: str,
    plans: Plans,
    flags: Flags,
    *,
    baseline: Baseline = "none",
    workshop: Workshop | None = None,
    tell: Tell | None = None,
) -> int:
    """Run what is missing of `plans`, write records as trials end, report; each arm is compared with its `baseline`.

    `workshop`: one that has made something of it already, else a new one is made. The exit code: see `command_line`.
    """
    plans = spread(plans, flags.seeds, flags.teachers)
    speak(flags.verbose)
    if flags.explain:
        show(experiment.explained(name, plans, flags, view=TERMINAL))
        return 0
    kept = {"only": flags.only, "baseline": baseline, "workshop": workshop, "view": TERMINAL}
    result = experiment.run(name, question, plans, flags, **kept)
    tell_results(flags.out, tell=tell)
    return ended(result)
