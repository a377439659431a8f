"""The published systems that an experiment can build on.

Each system is a complete recipe, one YAML file in `published/`: a whole trial config for ResNet-34 -> ResNet-18 on
CIFAR-10, with the source of each line. A recipe's inversion, memory, loss, student optimisation and length can be used
in any config; data and networks come from the experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from condkd_ray.core.config import Tree, read_tree
from condkd_ray.core.method import require

if TYPE_CHECKING:
    from condkd_ray.trial.config import TrialConfig

FOLDER = Path(__file__).parents[1] / "published"
Name = Literal[
    "deep_inversion", "dafl", "zskt", "dfad", "dfq", "soft_target",
    "cmi", "mb_dfkd", "pre_dfkd", "fast", "nayer", "ssd_kd",
]  # fmt: skip
NAMES: tuple[Name, ...] = get_args(Name)
"""Names of the systems in the order of their years."""
PARTS = ("targets", "weighing", "inversion", "memory", "distiller", "rounds", "evaluate_every")
"""Fields of a trial's config that a recipe sets. The experiment sets the mixing of condensed images."""
LEAST_BATCH = 64
"""Smallest batch of a scaled recipe (our choice): with fewer images, BN statistics are noise."""
MOST_MEASURED = 100
"""Largest number of rounds of a scaled recipe in which its student is evaluated (our choice)."""
IN_ROUNDS = {"inversion": ("warm_up", "resets"), "memory": ("period",), "distiller": ("milestones", "lr_epoch")}
"""Fields counted in rounds, by family."""


def path_of(name: str) -> Path:
    """Return the path of a recipe. Raises `InputError` for an unknown name."""
    require(name in NAMES, "published system", name, ", ".join(NAMES))
    return FOLDER / f"{name}.yaml"


@cache
def published(name: str) -> TrialConfig:
    """Return the complete recipe as published. Raises `InputError` for an unknown name."""
    # Imported here because it imports PyTorch, and scripts import this module for their flags.
    from condkd_ray.trial.config import from_tree

    return from_tree(read_tree(path_of(name)), str(path_of(name)))


def check_parts(name: str, tree: Tree, path: str) -> None:
    """Raise `InputError` if a config `tree` sets the rounds, or replaces one of the methods of system `name`.

    `path`: name of the tree's file, for messages.
    """
    recipe = published(name)
    theirs = {part: getattr(recipe, part) for part in ("targets", "weighing", "inversion", "memory")}
    given: dict[str, Any] = {part: tree.get(part) for part in theirs}
    theirs["distiller: loss"] = recipe.distiller.loss
    student = tree.get("distiller")
    given["distiller: loss"] = student.get("loss") if isinstance(student, dict) else None
    for part, method in theirs.items():
        value = given[part]
        other = value if isinstance(value, str) else value.get("name", method.name) if isinstance(value, dict) else None
        accepted = f"{method.name}, as of --host {name}; or --inversion instead of --host, to mix parts"
        require(other in (None, method.name), f"{path}: {part}", other, accepted)
    require("rounds" not in tree, f"{path}: rounds with --host {name}", tree.get("rounds"), "the flag --rounds")


def scaled(recipe: TrialConfig, scale: float) -> TrialConfig:
    """Return `recipe` with a fraction `scale` of its optimiser steps, in generator, student and memory alike.

    Our choice: the number of rounds and the steps per round both shrink by about the square root of `scale`. The part
    of a round with the fewest steps gets a whole number of steps, at least one. The other parts keep their proportion
    to this part, and the number of rounds compensates for the rounding. Batches shrink by the square root too, to no
    fewer than `LEAST_BATCH` images. A memory's batches shrink in the same proportion as the student's. The number of
    rounds after which NAYER draws a new generator does not change. Raises `InputError` for a scale outside (0, 1], or a
    scale that leaves no round.
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
    """Return the recipe with a fraction `inner` of the steps in each round, and `root` of the images in each batch."""

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
    fresh = (
        {"images_per_round": ceil(recipe.inversion.images_per_round * taken)}
        if recipe.inversion.fresh_each_round
        else {}
    )
    return replace(recipe, inversion=shrunk(recipe.inversion, batch, **fresh), memory=memory, distiller=distiller)


def with_rounds(recipe: TrialConfig, rounds: int) -> TrialConfig:
    """Return `recipe` with another number of student rounds, and all lengths counted in rounds in proportion.

    Each nonzero length stays at least one round. Milestones that coincide are merged. A shorter run is evaluated in at
    most `MOST_MEASURED` rounds. Raises `InputError` for fewer than one round.
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


def equal_rounds(path: Path, flags: Any, ends: dict[str, str], name: str) -> int:
    """Return the number of rounds of system `name` that take as long as the rounds of `fast`.

    `path`: the file of measurements that `experiments/equal_seconds.py` has written. `ends`: networks of teacher and
    student. Raises `InputError` if the file was measured with other `flags` or networks, or lacks the system.
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
