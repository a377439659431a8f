"""One teacher, one folder of images, minutes: does guidance help here, and at what cost?

Half of the images of each class are held out for the verdict and never guide. Nothing is selected on them. Channels,
classes, their order, normalisation and mirroring are checked first: what is wrong with any of these looks like a bad
teacher, or like guidance that does not help.
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
from condkd_ray.trial.card import with_card
from condkd_ray.trial.config import TrialConfig, dump, from_tree, read
from condkd_ray.trial.evaluation import accuracy, predict
from condkd_ray.trial.plan import Plan

log = logging.getLogger(__name__)

QUESTION = "Does guiding the inversion with these few images help here, and at what cost?"
FEW_REAL = "'Real' in the diagnosis are the guides and what a class has beyond them; without more, it is 'condensed'."
ARMS: tuple[Arm, ...] = ("none", "condensed_only", "mixed", "mixed_prior", "guided")
CONFIG = "guided.yaml"
"""The guided trial of seed 0, in the output folder: for `condkd train`, and for the same command to know its rounds."""
MOST_GUIDES = 10
"""A class, unless more are asked for."""
WIDTH = 64
"""Of the generator, half of what is the rule: more rounds in the same minutes."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 200
"""Of a trial, when they are chosen: fewer teach a student nothing, and more are no longer a try."""
AROUND = 25.0
"""Seconds that a run takes beside its trials: processes start, tables and figures are made."""
MIRRORED = 0.9
"""Part of the accuracy that mirrored images must keep to count as of their class (our choice)."""


@dataclass(frozen=True, kw_only=True)
class Try(TeacherFlags):
    """Does guidance help for your teacher and your few images? An answer in minutes, with its interval and its cost.

    Half of the images of each class are held out for the verdict; the others guide. The same command again continues.
    """

    images: Path
    """A folder with one sub-folder a class, of 3 or more images each. The classes are those of the teacher in their
    order: alphabetical (numbers as numbers), or as a file `classes.txt` there lists them."""
    teacher: str | None = None
    """Architecture of the teacher, such as resnet-8-16 (`condkd methods --networks`), where neither a card nor the
    names of the weights tell it."""
    student: str = "resnet-8-8"
    size: int | None = None
    """Side that images are resized to; the card's, or as they are, if not given."""
    flip_ok: bool | None = None
    """Whether a mirrored image keeps its class; the card's, or what the teacher says of mirrored guides."""
    guides: int | None = None
    """Images that guide, a class; what is not held out, less one for the proxy set, and at most 10 if not given."""
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float = 10.0
    """That all may take; as many rounds are run as fit."""
    rounds: int | None = None
    """Rounds of each trial, instead."""
    config: Path | None = None
    """A YAML file of config fields that goes over the flags: inversion, guidance, distiller and so on. A class prior in
    it, oh_weight and oh_temperature of the inversion, is that of mixed_prior and guided."""
    force_teacher: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(aliases=["--force"])] = False
    """Go on with a teacher that does not name the images as it should."""
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    """Trials at once, at most; as many as fit if not given."""
    out: Path = Path("runs/try")
    """The same folder again continues: what is finished stays."""
    cache: Path | None = None
    """Of nothing dear here; $CONDKD_CACHE or a folder in the user's cache home if not given."""
    fresh: bool = False
    """Move what `--out` holds aside and begin anew."""


def try_out(command: Try) -> int:
    """`condkd try`. The exit code: as an experiment's."""
    begin = time.monotonic()
    require(command.minutes > 0, "--minutes", command.minutes, "more than 0")
    require(command.rounds is None or command.rounds >= 1, "--rounds", command.rounds, "an integer >= 1")
    there = command.teacher_weights is not None or command.teacher_module is not None
    require(there, "--teacher-weights", None, "a safetensors file, or a .pt; or --teacher-module")
    is_folder, accepted = os.path.isdir(command.images), "an existing folder with one sub-folder a class"
    require(is_folder, "--images", str(command.images), accepted)
    if not command.fresh:
        records.check_same_experiment(command.out, "try")
    set_up_process(1)
    workshop = Workshop(command.cache, device="cuda" if command.gpus_per_trial else "cpu", view=TERMINAL)
    base = configure(command, workshop)
    dataset, teacher = workshop.data(base), workshop.teacher(base)
    share, answers = named_right(teacher, dataset)
    count, held_out = len(dataset.train) + len(dataset.test), len(dataset.test)
    head = (
        f"Teacher {base.teacher.label} names {share:.1%} of your {count} images as their folders do; "
        f"{held_out} of them are held out for the verdict, {base.ipc} a class guide."
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
            "try", QUESTION, plans, flags, workshop=workshop, tell=lambda out: tell(out, head, answers.tolist())
        )


def configure(command: Try, workshop: Workshop) -> TrialConfig:
    """The base of all arms, less its rounds. Raises `InputError` for what does not fit together."""
    known = _known(command)
    data, recipe, dataset = known.data, known.teacher, workshop.data(known)
    if recipe.module is None and recipe.weights is not None:
        check_form(recipe.build(dataset), recipe.weights, dataset, command.images)
    if data.flip_ok is None:
        data = replace(data, flip_ok=mirrors(workshop.teacher(known), dataset.train))
        log.info(f"images are {'' if data.flip_ok else 'not '}mirrored: the teacher was asked (--flip-ok)")
    guides = {"condensation": "random_real", "ipcs": (_most_guides(command, dataset),)}
    flags = Flags(student=command.student, seeds=command.seeds, **guides)
    base = replace(flags.base(), data=data, teacher=recipe, inversion=Fast(width=WIDTH))
    if command.config is not None:
        base = from_tree(merge(to_tree(base), read_tree(command.config)), str(command.config))
    guided = base.condensation is not None and not isinstance(base.guidance, NoGuidance)
    require(guided, f"guidance in {command.config}", base.guidance.name, "one that guides, with a condensation")
    makes = not isinstance(base.inversion, NoInversion)
    require(makes, f"inversion in {command.config}", base.inversion.name, "one that makes images, such as fast")
    plans_of(base, command.seeds)
    workshop.check(_guided(base))
    if (own := own_prior(base)) is not None:
        usual = usual_prior(base.inversion)
        log.info(
            f"mixed_prior and guided are made under the class prior of {command.config}, weight {own.weight:g} at "
            f"temperature {own.temperature:g}; mixed under the usual one of {base.inversion.name}, weight "
            f"{usual.weight:g} at {usual.temperature:g}"
        )
    return base


def plans_of(base: TrialConfig, seeds: Sequence[int]) -> list[Plan]:
    """All trials. Raises `InputError` where there cannot be one."""
    return [_planned(base, name, seed) for name in ARMS for seed in seeds]


def own_prior(base: TrialConfig) -> Prior | None:
    """The class prior that the user's config gives the inversion; None where it is the inversion's usual one.

    It is meant for the arms that have a prior of choice, mixed_prior and guided: else the config's would be replaced
    there, and `mixed` alone would have it. Raises `InputError` for one of weight 0, which leaves nothing to compare.
    """
    inversion, usual = base.inversion, usual_prior(base.inversion)
    weight, temperature = (getattr(inversion, name) for name in ("oh_weight", "oh_temperature"))
    found = Prior(weight, temperature)
    if found == usual:
        return None
    accepted = "more than 0, of the class prior of mixed_prior and guided; or leave it out"
    require(found.weight > 0, "inversion.oh_weight", found.weight, accepted)
    # Soft targets have a temperature of their own, which is taken where none is given.
    given = found.temperature != usual.temperature or not base.targets.soft
    return found if given else Prior(found.weight, PRIOR.temperature)


def usual_prior(inversion: AnyInversion) -> Prior:
    """That of an inversion whose config says nothing of it."""
    default: dict[str, Any] = {field.name: field.default for field in fields(inversion)}
    return Prior(default["oh_weight"], default["oh_temperature"])


def tell(out: Path, head: str, answers: Sequence[int]) -> str:
    """Make the report of `out`, with the verdict; what is printed. `answers`: the teacher's, for held-out images."""
    # It draws, which whoever imports this need not wait for.
    from condkd_ray.report.build import build

    manifest, counted = records.read_manifest(out), results.read(out).records
    found = verdict.told(counted, labels := manifest.test_labels, answers)
    records.write_manifest(out, replace(manifest, notes=[*manifest.notes, head, FEW_REAL, *found]))
    build(out)
    tables = [make(counted, labels, answers) for make in (verdict.arms_table, verdict.differences_table)]
    parts = [part for table in tables if table.rows for part in (table.text(), f"{table.legend}\n")]
    return "\n".join([head, "", *parts, *found])


def _known(command: Try) -> TrialConfig:
    """Data and teacher by flags, then by card, then by the names of its weights. Raises `InputError`."""
    data = {"size": command.size, "flip_ok": command.flip_ok}
    own = {"data": {name: value for name, value in data.items() if value is not None}, "teacher": {}}
    own["data"] |= {"name": "class_folders", "root": str(command.images)}
    if command.teacher is not None and command.teacher_module is None:
        own["teacher"]["network"] = to_tree(models.parse(command.teacher))
    tree = with_card(merge(own, command.about_teacher()))
    accepted = "its architecture, such as resnet-8-16 (condkd methods --networks lists them), or a --card that tells it"
    require(not {"network", "module"}.isdisjoint(tree["teacher"]), "--teacher", None, accepted)
    if "mean" not in tree["data"]:
        log.info("neither a card nor --mean and --std: the images are normalised by their own mean and std")
    return from_tree(tree, "flags")


def _guided(base: TrialConfig) -> TrialConfig:
    """The trial of the arm guided at the base's own seed."""
    return _planned(base, "guided", base.seed).config


def _planned(base: TrialConfig, name: Arm, seed: int) -> Plan:
    """The trial of an arm. A class prior of the user's own is that of mixed_prior and guided; mixed has the usual."""
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
    accepted = f"1 to {fewest}: half of each class is held out, and one of each is for the proxy set"
    require(1 <= command.guides <= fewest, "--guides", command.guides, accepted)
    return command.guides


def rounds_of(command: Try, base: TrialConfig, workshop: Workshop, begin: float) -> int:
    """Those asked for, those chosen before for the same trials, or as many as the minutes since `begin` allow."""
    asked = read_tree(command.config).get("rounds") if command.config and not command.rounds else command.rounds
    if asked is not None:
        return asked
    if (command.out / CONFIG).is_file():
        known = read(command.out / CONFIG)
        if content_hash(known) == content_hash(_guided(replace(base, rounds=known.rounds))):
            log.info(f"{known.rounds} rounds a trial, as chosen before (--rounds or --fresh changes that)")
            return known.rounds
    at_once = slots(command.cpus_per_trial, command.gpus_per_trial)
    at_once = min(at_once, command.max_concurrent or at_once)
    tried = [_planned(base, name, command.seeds[0]) for name in ("guided", "condensed_only")]
    guided, alone = (round_seconds(plan, workshop.prepare(plan.config)) for plan in tried)
    # Each synthetic arm is taken to be as dear as the guided.
    synthetic = len(ARMS) - 1
    each, trials = len(command.seeds) * (synthetic * guided + alone), len(command.seeds) * len(ARMS)
    left = 60 * command.minutes - (time.monotonic() - begin) - AROUND
    most = int(left * at_once / each) - base.inversion.warm_up
    rounds = min(max(most, LEAST_ROUNDS), MOST_ROUNDS)
    log.info(f"a guided round takes {guided:.2g} s: {rounds} rounds a trial, {trials} trials, {at_once} at once")
    if most < LEAST_ROUNDS:
        log.info(f"that takes longer than {command.minutes:g} minutes, and is very little: give it more --minutes")
    return rounds


def check_form(network: nn.Module, weights: Path, dataset: Dataset, images: Path) -> None:
    """Raise `InputError` where the weights are those of `network` but for the number of channels or classes.

    `network`: built for the images of `dataset`. Any other misfit is left to whoever loads the weights.
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
    """Raise `InputError` where there are more or fewer folders than the teacher has classes."""
    accepted = f"{known}, one for each class of the teacher, in their order"
    require(dataset.num_classes == known, f"number of class folders in {images}", dataset.num_classes, accepted)


def named_right(teacher: Teacher, dataset: Dataset) -> tuple[float, Tensor]:
    """The share of all images that the teacher names as their folder, and its answers (N,) for the held-out ones."""
    parts = (dataset.train, dataset.test)
    answers = [predict(teacher.network, part, teacher) for part in parts]
    right = torch.cat([found == part.labels for found, part in zip(answers, parts, strict=True)])
    return right.double().mean().item(), answers[1]


def mirrors(teacher: Teacher, images: RealImages) -> bool:
    """Whether the teacher names mirrored images (almost) as well."""
    mirrored = RealImages(images.pixels.flip(3), images.labels)
    return accuracy(teacher.network, mirrored, teacher) >= MIRRORED * accuracy(teacher.network, images, teacher)
