"""The standard arms of an experiment, and their labels.

Arms differ in the use of the condensed images: in the student's batches, in the inversion, in both or in neither. The
arm `mixed_prior` differs from `mixed` only in the inversion's class prior: it has the class prior of the guided arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from condkd_ray.core.method import Schedule, require
from condkd_ray.trial.plan import Plan

if TYPE_CHECKING:
    from condkd_ray.methods.inversion import AnyInversion
    from condkd_ray.trial.config import TrialConfig

Arm = Literal["none", "condensed_only", "mixed", "mixed_prior", "guided", "guided_only", "real"]
ONCE = ("none", "real")
"""Arms without condensed images: they have one trial per seed, for all IPCs together."""
TEMPERED: tuple[Arm, ...] = ("mixed_prior", "guided", "guided_only")
"""Arms in which the tempered class prior replaces the class prior of the inversion."""
BOTH: tuple[Arm, ...] = ("mixed", "mixed_prior", "guided")
"""Arms whose student is trained on condensed and synthetic images."""


@dataclass(frozen=True)
class Prior:
    """A class prior in place of an inversion's own: the loss weight x CE(teacher's logits / temperature, class).

    Weight and temperature are our choice. With weight 0 every arm keeps the inversion's own class prior. Raises
    `InputError` for a negative or infinite value, or a temperature of 0.
    """

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "--prior-weight", self.weight, "a number >= 0; at 0 no arm has the prior")
        require(0 < self.temperature < math.inf, "--prior-temperature", self.temperature, "a number > 0")


PRIOR = Prior(weight=100.0, temperature=4.0)
"""The default, chosen on CIFAR-10's validation images with `fast` without guidance: see `experiments/LOG.md`."""


def arm(base: TrialConfig, name: Arm, ipc: int, seed: int, label: str = "", *, prior: Prior = PRIOR) -> Plan:
    """Return the trial of arm `name` at `ipc` images per class. All arms have equally many student steps of equal size.

    The student's images are, for `none`: synthetic ones. `condensed_only`: condensed ones. `mixed`: both, with the
    base's share of condensed ones. `mixed_prior`: as `mixed`, with `prior` in place of the inversion's class prior.
    `guided`: as `mixed_prior`, with the base's guidance. `guided_only`: as `guided`, but only synthetic ones. `real`:
    all real images. So guided - mixed_prior is the gain from the condensed images as guides, and mixed_prior - mixed
    the gain from a class prior alone. Targets that are made of the condensed set, as `layouts`, are those of the guided
    arms; the others have balanced ones.

    `label`: another name for the arm in tables. If the base has `mix: concat`, the steps of arms with both kinds of
    images are larger than those of the others. Raises `InputError` if the inversion cannot have `prior`, or if, in an
    arm without guidance, the inversion is conditional and no loss ties its images to their labels.
    """
    # Imported here because these modules import PyTorch, and scripts import this module for their flags.
    from condkd_ray.methods.condensation import AllReal
    from condkd_ray.methods.guidance import NoGuidance
    from condkd_ray.methods.inversion import NoInversion
    from condkd_ray.methods.memory import Growing
    from condkd_ray.methods.targets import Balanced

    distiller, few = base.distiller, base.condensation
    alone, both, guided = name in ("condensed_only", "real"), name in BOTH, name.startswith("guided")
    inversion = NoInversion() if alone else _tempered(base, name, prior) if name in TEMPERED else base.inversion
    if not guided:
        _check_tied(inversion, name)
    share = distiller.condensed_share if both else 1.0 if alone else 0.0
    config = replace(
        base,
        seed=seed,
        condensation=AllReal() if name == "real" else None if name == "none" or few is None else replace(few, ipc=ipc),
        # The inversion would need soft targets; without an inversion they are dropped. Layouts are guidance.
        targets=Balanced() if alone or (base.targets.needs_condensed and not guided) else base.targets,
        inversion=inversion,
        guidance=base.guidance if guided else NoGuidance(),
        memory=Growing() if alone else base.memory,
        pipeline=None if alone else base.pipeline,
        distiller=replace(
            distiller,
            condensed_share=share,
            share_schedule=distiller.share_schedule if both else Schedule(),
            mix=distiller.mix if both else "share",
            # It has no effect without condensed images, and real images are not condensed ones.
            condensed_augment=distiller.condensed_augment if both or name == "condensed_only" else "batch",
        ),
    )
    return Plan(label or name, 0 if name in ONCE else ipc, seed, config)


def _tempered(base: TrialConfig, name: Arm, prior: Prior) -> AnyInversion:
    """Return the base's inversion with `prior`.

    Raises `InputError` if the inversion has no such fields, or if the arm `mixed_prior` would be equal to `mixed`.
    """
    inversion, soft, own = base.inversion, base.targets.soft, "--prior-weight 0, with which no arm has the prior"
    named = {field.name for field in fields(inversion)}
    there = not prior.weight or {"oh_weight", "oh_temperature"} <= named
    accepted = f"one with the fields oh_weight and oh_temperature, such as fast; or {own}"
    require(there, f"inversion of the arm {name}", inversion.name, accepted)
    # Soft targets are probabilities at their own temperature, and the prior then has this temperature too.
    theirs = getattr(base.targets, "temperature", PRIOR.temperature)
    fits = not (soft and prior.weight) or prior.temperature in (PRIOR.temperature, theirs)
    accepted = f"{theirs:g}, the targets' own, which is the default here; or {own}"
    require(fits, f"--prior-temperature with targets {base.targets.name}", prior.temperature, accepted)
    given = {"oh_weight": prior.weight} | ({} if soft else {"oh_temperature": prior.temperature})
    found = replace(inversion, **given) if prior.weight else inversion
    accepted = "a prior other than the inversion's own (with that, mixed_prior equals mixed); or no arm mixed_prior"
    given_prior = f"weight {prior.weight:g}, temperature {prior.temperature:g}"
    differs = name != "mixed_prior" or found != inversion
    require(differs, "prior of the arm mixed_prior (--prior-weight, --prior-temperature)", given_prior, accepted)
    return found


def _check_tied(inversion: AnyInversion, name: Arm) -> None:
    """Raise `InputError` if no loss ties labels to a generator's images, because arm `name` has no guidance.

    Another generator in this arm is no remedy: the arm would then be no control for the guided arms.
    """
    weight, conditional = getattr(inversion, "oh_weight", 0.0), getattr(inversion, "conditional", False)
    accepted = "a number > 0: without a guidance the class prior alone ties labels to images; or conditional false"
    what = f"oh_weight of inversion {inversion.name}, conditional, in the arm {name}"
    require(weight > 0 or not conditional, what, weight, accepted)


def spread(plans: Iterable[Plan], seeds: Sequence[int], teachers: int) -> list[Plan]:
    """Return the plans with their seeds distributed over teachers: the i-th of `seeds` has teacher i mod `teachers`.

    Teacher k is trained with seed s + k, where s is the seed in the plan's teacher config (0 by default). The seed of
    the data split is the same for all. Raises `InputError` for more teachers than seeds, for a teacher that is loaded
    instead of trained, and for plans with other seeds.
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


def network_pairs(pairs: Sequence[str], teacher: str, student: str) -> dict[str, dict[str, str]]:
    """Return teacher and student of each TEACHER/STUDENT in `pairs`, by label; the label of a single pair is empty.

    If there are no pairs, the only pair is `teacher` and `student`. Raises `InputError` for a text of another form.
    """
    found: dict[str, dict[str, str]] = {}
    for pair in pairs or [f"{teacher}/{student}"]:
        ends = pair.split("/")
        require(len(ends) == 2 and all(ends), "--pairs", pair, "TEACHER/STUDENT, such as resnet-8-16/resnet-8-8")
        found[f"({pair})" if len(pairs) > 1 else ""] = {"teacher": ends[0], "student": ends[1]}
    return found


def arm_label(name: str, pair: str = "", *, timed: bool = False, arm: str = "") -> str:
    """Return an arm's label in a comparison: use of condensed images, system, networks, and a note if `timed`."""
    return " ".join(part for part in (arm, name, pair, "in equal time" * timed) if part)
