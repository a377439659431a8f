"""`condkd try`: measure within minutes whether guidance helps with one teacher and one folder of images.

Half of the images of each class are held out for the verdict. They never guide, and no choice depends on them.
The channels, the classes and their order, the normalisation and the mirroring are checked first, because a mistake in
any of them looks like a bad teacher or like guidance that does not help.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from condkd_ray import models
from condkd_ray.cluster.connection import connect
from condkd_ray.cluster.options import check_resources, slots
from condkd_ray.commands import experiment
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.commands.experiment import Flags
from condkd_ray.commands.teacher_flags import TeacherFlags
from condkd_ray.core import records
from condkd_ray.core.config import content_hash, merge, read_tree, to_tree
from condkd_ray.core.environment import set_up_process
from condkd_ray.core.method import require
from condkd_ray.core.storage import atomic_write
from condkd_ray.data.datasets import Dataset, RealImages
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.inversion import AnyInversion, Fast, NoInversion
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import nearest
from condkd_ray.report import results
from condkd_ray.report.tables import verdict
from condkd_ray.runs.arms import PRIOR, Arm, Prior, arm
from condkd_ray.runs.estimate import round_seconds
from condkd_ray.runs.output_folder import open_folder
from condkd_ray.trial.artifacts import Workshop
from condkd_ray.trial.card import check_card, read_card, with_card
from condkd_ray.trial.config import TrialConfig, dump, from_tree, read
from condkd_ray.trial.evaluation import accuracy, predict
from condkd_ray.trial.plan import Plan

log = logging.getLogger(__name__)

QUESTION = "Does guiding the inversion with these few images help here, and at what cost?"
FEW_REAL = (
    "In the diagnosis, 'real' images are the guides and all other images that are not held out; without others, 'real' "
    "and 'condensed' images are the same."
)
ARMS: tuple[Arm, ...] = ("none", "condensed_only", "mixed", "mixed_prior", "guided")
CONFIG = "guided.yaml"
"""File in the output folder: the config of the guided trial of seed 0. `condkd train` runs it; `condkd try`
reads the number of rounds from it when it continues."""
MOST_GUIDES = 10
"""Default limit of the number of guides per class."""
WIDTH = 64
"""Width of the generator. It is half the default of `fast`, so that more rounds fit into the same time."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
"""Limits of the number of rounds that `condkd try` chooses: a student needs at least three to learn anything, and more
than 200 take hours."""
AROUND = 25.0
"""Seconds that a run takes besides its trials, for starting processes and writing tables and figures."""
MIRRORED = 0.9
"""Mirrored images keep their class if the teacher's accuracy on them is at least this share of its accuracy on the
images as they are (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Try(TeacherFlags):
    """Does guidance help for your teacher and your few images? Prints a verdict within minutes, with interval and cost.

    Half of the images of each class are held out for the verdict; the others guide. Running the same command again
    continues an interrupted run. The teacher classifies images: the verdict needs a prediction for each image.
    """

    images: Path
    """A folder with one sub-folder per class, each with 3 or more images. The sub-folders must be in the order of the
    teacher's classes: alphabetical (numbers by value), or as listed in a file `classes.txt` in the folder."""
    teacher: str | None = None
    """Architecture of the teacher, such as resnet-8-16 (`condkd methods --networks` lists them). Needed only if neither
    a card nor the names of the weights determine it."""
    student: str = "resnet-8-8"
    """Architecture of the students; `condkd methods --networks` lists all."""
    size: int | tuple[int, int] | None = None
    """Size in pixels to which images are resized, one side, or height and width; default: the card's value, else the
    images keep their size."""
    flip_ok: bool | None = None
    """True if a mirrored image keeps its class; default: the card's value, else measured with the teacher."""
    guides: int | None = None
    """Images per class that guide; default: all that are not held out, less one for the proxy set, but at most 10."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trials of each arm; more seeds narrow the intervals."""
    minutes: float = 10.0
    """Time limit of the whole run; the number of rounds is chosen to fit it."""
    rounds: int | None = None
    """Rounds of each trial; replaces the choice by `--minutes`."""
    config: Path | None = None
    """A YAML file of config fields that override the flags: inversion, guidance, distiller and others. A class prior in
    it (oh_weight and oh_temperature of the inversion) applies to mixed_prior and guided only."""
    force_teacher: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(aliases=["--force"])] = False
    """Continue although the teacher's accuracy on the images is too low for a teacher of these classes."""
    cpus_per_trial: float = 1.0
    """CPUs of each trial; also its number of threads, rounded down but at least 1."""
    gpus_per_trial: float = 0.0
    """GPUs of each trial: 0 to 1, or a whole number."""
    max_concurrent: int | None = None
    """Limit of the number of trials at once; default: as many as fit."""
    out: Path = Path("runs/try")
    """Folder of the results. If it already holds this run, finished trials are kept and the rest continues."""
    cache: Path | None = None
    """Folder of teachers and condensed sets; default: $CONDKD_CACHE, else a folder in the user's cache home."""
    fresh: bool = False
    """Move the present content of `--out` aside and start over."""


def try_out(command: Try) -> int:
    """Run `condkd try`; return the exit code, see `condkd_ray.commands.experiment.command_line`.

    Raises `InputError` for flags, images or a teacher that cannot be used.
    """
    begin = time.monotonic()
    require(command.minutes > 0, "--minutes", command.minutes, "more than 0")
    require(command.rounds is None or command.rounds >= 1, "--rounds", command.rounds, "an integer >= 1")
    there = command.teacher_weights is not None or command.teacher_module is not None
    require(there, "--teacher-weights", None, "a safetensors file, or a .pt; or --teacher-module")
    is_folder, accepted = os.path.isdir(command.images), "an existing folder with one sub-folder per class"
    require(is_folder, "--images", str(command.images), accepted)
    if not command.fresh:
        records.check_same_experiment(command.out, "try")
    set_up_process(1)
    workshop = Workshop(command.cache, device="cuda" if command.gpus_per_trial else "cpu", view=TERMINAL)
    base = configure(command, workshop)
    dataset, teacher = workshop.data(base), workshop.teacher(base)
    share, predicted = agreement_with_folders(teacher, dataset)
    count, held_out = len(dataset.train) + len(dataset.test), len(dataset.test)
    head = (
        f"Teacher {base.teacher.label} classifies {share:.1%} of your {count} images as their folders do; "
        f"{held_out} of them are held out for the verdict, and {base.ipc} per class guide the inversion."
    )
    log.info(head)
    open_folder(command.out, "try", fresh=command.fresh)
    with connect(view=TERMINAL):
        check_resources(command.cpus_per_trial, command.gpus_per_trial)
        base = replace(base, rounds=rounds_of(command, base, workshop, begin))
        atomic_write(command.out / CONFIG, dump(_guided(base)).encode())
        plans = plans_of(base, command.seeds)
        kept = ("out", "cache", "seeds", "cpus_per_trial", "gpus_per_trial", "max_concurrent")
        flags = Flags(**{name: getattr(command, name) for name in kept})
        return experiment.run(
            "try", QUESTION, plans, flags, workshop=workshop, report=lambda out: report(out, head, predicted.tolist())
        )


def configure(command: Try, workshop: Workshop) -> TrialConfig:
    """Return the config from which all arms are derived, without its rounds.

    Raises `InputError` if the teacher, the images and the config do not fit together.
    """
    known = _known(command)
    data, recipe, dataset = known.data, known.teacher, workshop.data(known)
    if recipe.card is not None:
        check_card(recipe.card, read_card(recipe.card), dataset)
    if recipe.module is None and recipe.weights is not None:
        check_form(recipe.build(dataset), recipe.weights, dataset, command.images)
    if data.flip_ok is None:
        data = replace(data, flip_ok=mirrors(workshop.teacher(known), dataset.train))
        log.info(f"images are {'' if data.flip_ok else 'not '}mirrored: measured with the teacher (--flip-ok sets it)")
    guides = {"condensation": "random_real", "ipcs": (_most_guides(command, dataset),)}
    flags = Flags(student=command.student, seeds=command.seeds, **guides)
    base = replace(flags.base(), data=data, teacher=recipe, inversion=Fast(width=WIDTH))
    if command.config is not None:
        base = from_tree(merge(to_tree(base), read_tree(command.config)), str(command.config))
    what, accepted = f"task of the data in {command.config}", f"{dataset.task}, as of {command.images}"
    require(base.data.task == dataset.task, what, base.data.task, accepted)
    guided = base.condensation is not None and not isinstance(base.guidance, NoGuidance)
    accepted = "a guidance other than none, with a condensation"
    require(guided, f"guidance in {command.config}", base.guidance.name, accepted)
    makes = not isinstance(base.inversion, NoInversion)
    require(
        makes, f"inversion in {command.config}", base.inversion.name, "an inversion that makes images, such as fast"
    )
    plans_of(base, command.seeds)
    workshop.check(_guided(base))
    if (own := own_prior(base)) is not None:
        usual = usual_prior(base.inversion)
        log.info(
            f"mixed_prior and guided use the class prior of {command.config}: weight {own.weight:g}, temperature "
            f"{own.temperature:g}; mixed uses the default one of {base.inversion.name}: weight {usual.weight:g}, "
            f"temperature {usual.temperature:g}"
        )
    return base


def plans_of(base: TrialConfig, seeds: Sequence[int]) -> list[Plan]:
    """Return the plans of all trials. Raises `InputError` if an arm cannot be built from the config."""
    return [_planned(base, name, seed) for name in ARMS for seed in seeds]


def own_prior(base: TrialConfig) -> Prior | None:
    """Return the class prior that the user's config sets in the inversion, or None if it is the inversion's default.

    It applies to the arms whose prior can be chosen, mixed_prior and guided. If it stayed in the base config, these
    arms would replace it and only `mixed` would use it. Raises `InputError` if its weight is 0, because there is then
    nothing to compare.
    """
    inversion, usual = base.inversion, usual_prior(base.inversion)
    weight, temperature = (getattr(inversion, name) for name in ("oh_weight", "oh_temperature"))
    found = Prior(weight, temperature)
    if found == usual:
        return None
    accepted = "more than 0, for the class prior of mixed_prior and guided; or no such field"
    require(found.weight > 0, "inversion.oh_weight", found.weight, accepted)
    # Soft targets set the temperature themselves; the arms accept the default one of the prior and replace it.
    given = found.temperature != usual.temperature or not base.targets.soft
    return found if given else Prior(found.weight, PRIOR.temperature)


def usual_prior(inversion: AnyInversion) -> Prior:
    """Return the default class prior of an inversion. Raises `InputError` if its values are not accepted."""
    default: dict[str, Any] = {field.name: field.default for field in fields(inversion)}
    return Prior(default["oh_weight"], default["oh_temperature"])


def report(out: Path, head: str, predicted: Sequence[int]) -> str:
    """Write the report of `out`, with the verdict in its notes; return the text to print.

    `predicted`: the classes that the teacher predicts for the held-out images.
    """
    # Imported here because it imports matplotlib, which other users of this module do not need.
    from condkd_ray.report.build import build

    manifest, counted = records.read_manifest(out), results.read(out).records
    found = verdict.lines(counted, labels := manifest.test_labels, predicted)
    records.write_manifest(out, replace(manifest, notes=[*manifest.notes, head, FEW_REAL, *found]))
    build(out)
    tables = [make(counted, labels, predicted) for make in (verdict.arms_table, verdict.differences_table)]
    parts = [part for table in tables if table.rows for part in (table.text(), f"{table.legend}\n")]
    return "\n".join([head, "", *parts, *found])


def _known(command: Try) -> TrialConfig:
    """Return the config of data and teacher: from the flags, else the card, else the names of the weights.

    Raises `InputError` if the architecture stays unknown.
    """
    data = {"size": command.size, "flip_ok": command.flip_ok}
    own = {"data": {name: value for name, value in data.items() if value is not None}, "teacher": {}}
    own["data"] |= {"name": "class_folders", "root": str(command.images)}
    if command.teacher is not None and command.teacher_module is None:
        own["teacher"]["network"] = to_tree(models.parse(command.teacher))
    tree = with_card(merge(own, command.about_teacher()))
    accepted = "an architecture such as resnet-8-16 (condkd methods --networks lists them), or a --card with one"
    require(not {"network", "module"}.isdisjoint(tree["teacher"]), "--teacher", None, accepted)
    if "mean" not in tree["data"]:
        log.info("no card and no --mean and --std: the images are normalised by their own mean and std")
    return from_tree(tree, "flags")


def _guided(base: TrialConfig) -> TrialConfig:
    """Return the config of the trial of the arm guided at the base's own seed."""
    return _planned(base, "guided", base.seed).config


def _planned(base: TrialConfig, name: Arm, seed: int) -> Plan:
    """Return the trial of an arm: mixed_prior and guided have the user's class prior, the others the default one."""
    own = own_prior(base)
    if own is None:
        return arm(base, name, base.ipc, seed)
    usual = usual_prior(base.inversion)
    inversion = replace(base.inversion, oh_weight=usual.weight, oh_temperature=usual.temperature)
    return arm(replace(base, inversion=inversion), name, base.ipc, seed, prior=own)


def _most_guides(command: Try, dataset: Dataset) -> int:
    fewest = int(dataset.train.labels.bincount(minlength=dataset.num_classes).min()) - 1
    if command.guides is None:
        return min(fewest, MOST_GUIDES)
    accepted = f"1 to {fewest}: half of each class is held out, and one image of each class is for the proxy set"
    require(1 <= command.guides <= fewest, "--guides", command.guides, accepted)
    return command.guides


def rounds_of(command: Try, base: TrialConfig, workshop: Workshop, begin: float) -> int:
    """Return the number of rounds per trial.

    It is the first of these that exists: the number in the flags or in the config, the number that an earlier run of
    the same trials chose, the number that fits into `--minutes` from `begin` (a time of `time.monotonic`). Raises
    `InputError` if a config cannot be read, and `NonFiniteError` if a trial diverges while a round is timed.
    """
    given = read_tree(command.config).get("rounds") if command.config and not command.rounds else command.rounds
    if given is not None:
        return given
    if (command.out / CONFIG).is_file():
        known = read(command.out / CONFIG)
        if content_hash(known) == content_hash(_guided(replace(base, rounds=known.rounds))):
            log.info(f"{known.rounds} rounds per trial, as in the earlier run (--rounds or --fresh changes that)")
            return known.rounds
    at_once = slots(command.cpus_per_trial, command.gpus_per_trial)
    at_once = min(at_once, command.max_concurrent or at_once)
    tried = [_planned(base, name, command.seeds[0]) for name in ("guided", "condensed_only")]
    guided, alone = (round_seconds(plan, workshop.prepare(plan.config)) for plan in tried)
    # Every arm that makes images is assumed to cost as much as `guided`.
    synthetic = len(ARMS) - 1
    each, trials = len(command.seeds) * (synthetic * guided + alone), len(command.seeds) * len(ARMS)
    left = 60 * command.minutes - (time.monotonic() - begin) - AROUND
    most = int(left * at_once / each) - base.inversion.warm_up
    rounds = min(max(most, LEAST_ROUNDS), MOST_ROUNDS)
    log.info(f"a guided round takes {guided:.2f} s: {rounds} rounds per trial, {trials} trials, {at_once} at once")
    if most < LEAST_ROUNDS:
        log.info(f"this takes longer than {command.minutes:g} minutes and is very little: more --minutes are needed")
    return rounds


def check_form(network: nn.Module, weights: Path, dataset: Dataset, images: Path) -> None:
    """Raise `InputError` if the weights do not fit the number of channels or of classes of the images.

    `network`: built for the images of `dataset`. `images`: their folder. Weights that differ in other ways are refused
    when they are loaded.
    """
    own, given = network.state_dict(), nearest(network, weights)
    first = next((name for name, tensor in own.items() if tensor.ndim == 4), "")
    if first in given and given[first].ndim == 4 and given[first].shape[0] == own[first].shape[0]:
        reads, there = given[first].shape[1], dataset.image_shape[0]
        accepted = f"{reads}, which the teacher reads: save them {'as RGB' if reads == 3 else 'in grey'}"
        require(reads == there, f"channels of the images in {images}", there, accepted)
    last = [name for name, tensor in own.items() if tensor.ndim in (1, 2)][-1]
    if last in given and given[last].shape[1:] == own[last].shape[1:]:
        check_classes(given[last].shape[0], dataset, images)


def check_classes(known: int, dataset: Dataset, images: Path) -> None:
    """Raise `InputError` if the number of folders is not the teacher's number of classes, `known`."""
    accepted = f"{known}, one for each class of the teacher, in their order"
    require(dataset.num_classes == known, f"number of class folders in {images}", dataset.num_classes, accepted)


def agreement_with_folders(teacher: Teacher, dataset: Dataset) -> tuple[float, Tensor]:
    """Return the share of images that the teacher assigns to their folder, and its predictions for those held out.

    The share is over all images. The predictions are class indices of shape (N,), with N held-out images.
    """
    parts = (dataset.train, dataset.test)
    predicted = [predict(teacher.network, part, teacher) for part in parts]
    right = torch.cat([found == part.labels for found, part in zip(predicted, parts, strict=True)])
    return right.double().mean().item(), predicted[1]


def mirrors(teacher: Teacher, images: RealImages) -> bool:
    """Return True if the teacher's accuracy on mirrored images is at least `MIRRORED` of that on the images."""
    mirrored = RealImages(images.pixels.flip(3), images.labels)
    return accuracy(teacher.network, mirrored, teacher) >= MIRRORED * accuracy(teacher.network, images, teacher)
