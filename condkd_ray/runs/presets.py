"""The standard arms, and the published systems that they can be built on.

Arms differ in who sees the condensed images: the student, the inversion, both or neither.

A published system is a complete recipe, one YAML file in `published/`: a whole trial config for ResNet-34 -> ResNet-18
on CIFAR-10, which names for each line where it was read. What a recipe says of inversion, memory, loss, student and
length goes into any config; data and networks are the experiment's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from math import ceil, sqrt
from pathlib import Path
from typing import Any, Literal, get_args

from condkd_ray.core.config import Tree, read_tree
from condkd_ray.core.method import Schedule, require
from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.inversion import Cmi, NoInversion
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.memory import Generative, Growing
from condkd_ray.methods.targets import Balanced
from condkd_ray.models.cost import cost_of, meta_cost, short
from condkd_ray.models.generator import Generator, vae
from condkd_ray.trial.config import TrialConfig, from_tree
from condkd_ray.trial.plan import Plan

Arm = Literal["none", "condensed_only", "mixed", "guided", "guided_only", "real"]
ONCE = ("none", "real")
"""Arms without condensed images: one trial a seed, whatever the IPCs."""
FOLDER = Path(__file__).parents[1] / "published"
Name = Literal[
    "deep_inversion", "dafl", "zskt", "dfad", "dfq", "soft_target",
    "cmi", "mb_dfkd", "pre_dfkd", "fast", "nayer", "ssd_kd",
]  # fmt: skip
NAMES: tuple[Name, ...] = get_args(Name)
"""In the order of their years."""
PARTS = ("targets", "weighing", "inversion", "memory", "distiller", "rounds", "evaluate_every")
"""Fields of a trial's config that a recipe sets; how condensed images are mixed in is left to the experiment."""
LEAST_BATCH = 64
"""Images to which no batch is scaled down (our choice): below it BN statistics are noise."""
MOST_MEASURED = 100
"""Rounds of a scaled recipe in which its student is measured, at most (our choice)."""
IN_ROUNDS = {"inversion": ("warm_up", "resets"), "memory": ("period",), "distiller": ("milestones", "lr_epoch")}
"""Lengths that are counted in rounds, by the family whose field they are."""
LEGEND = (
    "Rounds: of the student, plus those of the warm-up, in which only images are made. Student images: each as often "
    "as it is taught. Multiply-adds: of all networks, forwards and backwards, ResNet-34 -> ResNet-18 on 3x32x32 images."
)
HEADER = (
    "| system | published in | rounds | images made | student images | multiply-adds | recipe |\n"
    "|---|---|--:|--:|--:|--:|---|"
)


def arm(base: TrialConfig, name: Arm, ipc: int, seed: int, label: str = "") -> Plan:
    """The trial of arm `name` at `ipc` images a class; all arms take the same student steps of the same size.

    `none`: no condensed images. `condensed_only`: no synthetic ones. `mixed`: both, in the base's share. `guided`:
    mixed, under the base's guidance. `guided_only`: guided, but the student sees synthetic images alone. `real`: KD on
    all real data. `label`: another name for it in tables. Where the base has `mix: concat`, the steps of `mixed` and
    `guided` are larger than those of the others.
    """
    distiller, few = base.distiller, base.condensation
    alone, both = name in ("condensed_only", "real"), name in ("mixed", "guided")
    share = distiller.condensed_share if both else 1.0 if alone else 0.0
    config = replace(
        base,
        seed=seed,
        condensation=AllReal() if name == "real" else None if name == "none" or few is None else replace(few, ipc=ipc),
        # Soft targets are asked of the inversion, so where there is none they go with it.
        targets=Balanced() if alone else base.targets,
        inversion=NoInversion() if alone else base.inversion,
        guidance=base.guidance if name.startswith("guided") else NoGuidance(),
        memory=Growing() if alone else base.memory,
        pipeline=None if alone else base.pipeline,
        distiller=replace(
            distiller,
            condensed_share=share,
            share_schedule=distiller.share_schedule if both else Schedule(),
            mix=distiller.mix if both else "share",
        ),
    )
    return Plan(label or name, 0 if name in ONCE else ipc, seed, config)


def spread(plans: Iterable[Plan], seeds: Sequence[int], teachers: int) -> list[Plan]:
    """The plans with their seeds spread over so many teachers: the i-th of `seeds` has teacher i mod `teachers`.

    Teacher k is trained with the seed k above that of the plan's own teacher config, 0 by default; the seed of the data
    split is the same for all. Raises `InputError` where that cannot be: more teachers than seeds, a teacher that is
    loaded and not trained, plans of other seeds.
    """
    found, different = list(plans), list(dict.fromkeys(seeds))
    accepted = f"1 to {len(different)}, the number of --seeds"
    require(1 <= teachers <= max(1, len(different)), "--teachers", teachers, accepted)
    if teachers == 1:
        return found
    loaded = [plan.config.teacher.weights for plan in found if plan.config.teacher.weights is not None]
    require(not loaded, f"--teachers with --teacher-weights {next(iter(loaded), '')}", teachers, "1, that of the file")
    made = [plan.config.teacher.module for plan in found if plan.config.teacher.module is not None]
    require(not made, f"--teachers with --teacher-module {next(iter(made), '')}", teachers, "1, that of the function")
    planned = {plan.seed for plan in found}
    require(planned == set(different), "--teachers", teachers, "1: this experiment does not run each of --seeds")
    moved = []
    for plan in found:
        own = plan.config.teacher
        teacher = replace(own, seed=own.seed + different.index(plan.seed) % teachers)
        moved.append(replace(plan, config=replace(plan.config, teacher=teacher)))
    return moved


def path_of(name: str) -> Path:
    """The file of a recipe. Raises `InputError` for a name that is none."""
    require(name in NAMES, "published system", name, ", ".join(NAMES))
    return FOLDER / f"{name}.yaml"


@cache
def published(name: str) -> TrialConfig:
    """The complete recipe as published. Raises `InputError` for a name that is none."""
    return from_tree(read_tree(path_of(name)), str(path_of(name)))


def check_parts(name: str, tree: Tree, path: str) -> None:
    """Raise `InputError` where a config `tree` puts another method in the place of one of the system's."""
    recipe = published(name)
    theirs = {part: getattr(recipe, part) for part in ("targets", "weighing", "inversion", "memory")}
    given: dict[str, Any] = {part: tree.get(part) for part in theirs}
    theirs["distiller: loss"] = recipe.distiller.loss
    student = tree.get("distiller")
    given["distiller: loss"] = student.get("loss") if isinstance(student, dict) else None
    for part, method in theirs.items():
        value = given[part]
        other = value if isinstance(value, str) else value.get("name", method.name) if isinstance(value, dict) else None
        accepted = f"{method.name}, which is that of --host {name}; or --inversion in the place of --host, to mix parts"
        require(other in (None, method.name), f"{path}: {part}", other, accepted)
    require("rounds" not in tree, f"{path}: rounds beside --host {name}", tree.get("rounds"), "the flag --rounds")


def scaled(recipe: TrialConfig, scale: float) -> TrialConfig:
    """`recipe` with `scale` of its optimiser steps, the generator's, the student's and a memory's alike; our choice.

    The number of rounds and the steps in a round both shrink by about the root of `scale`. The part of a round with the
    fewest steps gets a whole number of them, one at least; the others keep their proportion to it, and the number of
    rounds makes up for what is rounded. Batches shrink by the root, to no fewer than `LEAST_BATCH` images, those of a
    memory with the student's. A generator's life (NAYER) stays as long as it was.
    Raises `InputError` for a scale that is not above 0 and at most 1, or leaves no round.
    """
    require(0 < scale <= 1, "scale", scale, "0 < scale <= 1")
    root = sqrt(scale)
    parts: Any = recipe.inversion, recipe.distiller, recipe.memory
    fewest = min(part.steps for part in parts if hasattr(part, "steps"))
    inner = max(1, round(fewest * root)) / fewest
    least = 0.5 * inner / recipe.rounds
    require(scale > least, "scale", scale, f"above {least:.2g}, at which no round of {recipe.rounds} is left")
    return with_rounds(_smaller_rounds(recipe, inner, root), max(1, round(recipe.rounds * scale / inner)))


def _smaller_rounds(recipe: TrialConfig, inner: float, root: float) -> TrialConfig:
    """Each round with `inner` of its steps, on batches of `root` of their images."""

    def batch(images: int) -> int:
        return max(round(images * root), min(images, LEAST_BATCH))

    def shrunk(part: Any, images: Callable[[int], int], **more: int) -> Any:
        there = {field.name for field in fields(part)}
        given = {name: max(1, round(getattr(part, name) * inner)) for name in ("steps",) if name in there}
        given |= {name: images(getattr(part, name)) for name in ("batch", "entry_size") if name in there}
        return replace(part, **given | {name: value for name, value in more.items() if name in there})

    distiller, before = shrunk(recipe.distiller, batch), recipe.distiller
    memory = shrunk(recipe.memory, lambda images: max(2, round(images * distiller.batch / before.batch)))
    taken = distiller.steps * distiller.batch / (before.steps * before.batch)
    fresh = {"images_per_round": ceil(recipe.inversion.images_per_round * taken)} if recipe.inversion.fresh else {}
    return replace(recipe, inversion=shrunk(recipe.inversion, batch, **fresh), memory=memory, distiller=distiller)


def with_rounds(recipe: TrialConfig, rounds: int) -> TrialConfig:
    """`recipe` in another number of the student's rounds, with all that is counted in rounds in proportion.

    Nothing that was there vanishes: each length is at least one round. Milestones that fall together are one. A shorter
    run is not measured in more than `MOST_MEASURED` rounds.
    """
    require(rounds >= 1, "rounds", rounds, "an integer >= 1")
    factor = rounds / recipe.rounds

    def stretched(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(dict.fromkeys(stretched(one) for one in value))
        return max(1, round(value * factor)) if value else value

    def longer(part: Any, names: tuple[str, ...]) -> Any:
        there = {field.name for field in fields(part)}
        return replace(part, **{name: stretched(getattr(part, name)) for name in names if name in there})

    parts = {family: longer(getattr(recipe, family), names) for family, names in IN_ROUNDS.items()}
    parts["distiller"] = parts["distiller"].within(rounds)
    every = stretched(recipe.evaluate_every)
    if rounds < recipe.rounds:
        every = max(every, ceil(rounds / MOST_MEASURED))
    return replace(recipe, rounds=rounds, evaluate_every=every, **parts)


def network_pairs(pairs: Sequence[str], teacher: str, student: str) -> dict[str, dict[str, str]]:
    """Teacher and student of each TEACHER/STUDENT of `pairs`, by what labels call it: nothing where there is one alone.

    Without any pair it is that of `teacher` and `student`. Raises `InputError`.
    """
    found: dict[str, dict[str, str]] = {}
    for pair in pairs or [f"{teacher}/{student}"]:
        ends = pair.split("/")
        require(len(ends) == 2 and all(ends), "--pairs", pair, "TEACHER/STUDENT, such as resnet-8-16/resnet-8-8")
        found[f"({pair})" if len(pairs) > 1 else ""] = {"teacher": ends[0], "student": ends[1]}
    return found


def arm_label(name: str, pair: str = "", *, timed: bool = False, who: str = "") -> str:
    """The arm of a system in a comparison: who sees condensed images, the system, its networks, and `timed` ones."""
    return " ".join(part for part in (who, name, pair, "in equal time" * timed) if part)


def equal_rounds(path: Path, flags: Any, ends: dict[str, str], name: str) -> int:
    """How many rounds of a system take as long as those of `fast`, as experiments/equal_seconds.py wrote to `path`.

    Raises `InputError` where that was measured otherwise than the `flags` of an experiment and the networks `ends` say.
    """
    known, changing = read_tree(path), ("dataset", "scale", "size", "config", "condensed")
    given = {what: getattr(flags, what, None) for what in changing}
    wanted = {what: value for what, value in given.items() if value not in (None, False)} | ends
    found = {what: known.get(what) for what in wanted}
    accepted = f"{found}, as measured there; equal_seconds.py measures others; or --equal proportion"
    require(found == wanted, f"--equal seconds by {path}", wanted, accepted)
    rounds: Any = known.get("rounds")
    whole = isinstance(rounds, dict) and all(type(count) is int and count >= 1 for count in rounds.values())
    require(whole, f"rounds in {path}", rounds, "a number of rounds, 1 or more, for each system")
    require(name in rounds, f"a system whose seconds are not in {path}", name, ", ".join(rounds))
    return rounds[name]


@dataclass(frozen=True)
class Compute:
    """What a recipe takes on given networks."""

    images: int
    """Synthetic images made, those of the warm-up included."""
    student_images: int
    """Images the student is taught with, each as often as it is."""
    multiply_adds: float
    """Of all networks, forwards and backwards; of convolutions and linear layers alone."""


def compute(recipe: TrialConfig, image_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> Compute:
    """What `recipe` takes, counted from its networks.

    A gradient to a network's input costs as much as its forward pass, one to its weights as much again; frozen networks
    have none of the latter.
    """
    teacher, student = (
        cost_of(network, image_shape, num_classes).multiply_adds for network in (recipe.teacher.network, recipe.student)
    )
    inversion, taught = recipe.inversion, recipe.distiller
    made, learnt = recipe.total_rounds * inversion.images_per_round, recipe.rounds * taught.steps * taught.batch
    asked = (teacher if taught.augment else 0) + 3 * student
    total = learnt * asked + _synthesis(recipe, image_shape, teacher, student)
    if isinstance(recipe.memory, Generative):
        total += _replay(recipe, recipe.memory, image_shape, teacher)
    return Compute(made, learnt, total)


def _synthesis(recipe: TrialConfig, shape: tuple[int, int, int], teacher: int, student: int) -> float:
    """Multiply-adds of all steps of the inversion, and of the one pass that labels or answers what it made."""
    inversion = recipe.inversion
    if isinstance(inversion, NoInversion):
        return 0.0
    generator = 0
    if not isinstance(inversion, Pixelwise):
        sizes: Any = inversion
        generator = meta_cost(lambda: Generator(sizes.latent, sizes.width, shape), (sizes.latent,))
    looks = 4 if isinstance(inversion, Cmi) else 2
    seen = inversion.steps * getattr(inversion, "loops", 1) * inversion.batch  # type: ignore[attr-defined]
    step = 3 * generator + looks * teacher
    total = recipe.total_rounds * seen * step + recipe.rounds * seen * (2 * student if inversion.asks_student else 0)
    if isinstance(inversion, Unconditional):
        total += recipe.rounds * inversion.images_per_round * (generator + teacher)
    elif not recipe.distiller.augment:
        total += recipe.total_rounds * inversion.images_per_round * teacher
    return total


def _replay(recipe: TrialConfig, memory: Generative, shape: tuple[int, int, int], teacher: int) -> float:
    """Multiply-adds of PRE-DFKD's memory: its own steps, and the recall of each image."""
    encoder, decoder = (
        meta_cost(lambda part=part: vae(memory.latent, memory.width, shape)[part], size)
        for part, size in ((0, shape), (1, (memory.latent,)))
    )
    recalled = round(memory.replay * memory.batch)
    learnt = memory.steps * (memory.batch + recalled) * 3 * (encoder + decoder + teacher)
    moved = memory.steps * recalled * (3 * decoder + 2 * teacher)
    drawn = recipe.distiller.steps * round(memory.share * recipe.distiller.batch) * 3 * (decoder + teacher)
    return recipe.rounds * (learnt + moved + drawn)


def table() -> str:
    """A Markdown table of the recipes as published, with what each takes; the files say where each line was read."""
    rows = []
    for name in NAMES:
        recipe = published(name)
        taken, before = compute(recipe), recipe.inversion.warm_up
        rounds = f"{recipe.rounds}" + (f" + {before}" if before else "")
        # A system named after its memory shares its inversion with another.
        paper = recipe.memory.paper or recipe.inversion.paper
        counts = map(short, (taken.images, taken.student_images, taken.multiply_adds))
        rows.append(f"| {' | '.join([f'`{name}`', paper, rounds, *counts, f'`published/{name}.yaml`'])} |")
    return "\n".join([HEADER, *rows, "", LEGEND]) + "\n"
