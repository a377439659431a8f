"""The standard arms of an experiment, and what they are called.

Arms differ in who sees the condensed images: the student, the inversion, both or neither. One more, `mixed_prior`,
differs from `mixed` in the inversion's class prior alone, which is that of the guided arms.
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
"""Arms without condensed images: one trial a seed, whatever the IPCs."""
TEMPERED: tuple[Arm, ...] = ("mixed_prior", "guided", "guided_only")
"""Arms whose inversion has the tempered class prior in the place of its own."""
BOTH: tuple[Arm, ...] = ("mixed", "mixed_prior", "guided")
"""Arms whose student sees condensed and synthetic images."""


@dataclass(frozen=True)
class Prior:
    """A tempered class prior, weight x CE(teacher's logits / temperature, class), in the place of an inversion's own.

    The weight and temperature are our choice. Weight 0: every arm keeps the inversion's own. Raises `InputError`.
    """

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "--prior-weight", self.weight, "a number >= 0; at 0 no arm has the prior")
        require(0 < self.temperature < math.inf, "--prior-temperature", self.temperature, "a number > 0")


PRIOR = Prior(weight=100.0, temperature=4.0)
"""Chosen on CIFAR-10's validation images with `fast` and no guide: the claim `choosing_prior`, `experiments/LOG.md`."""


def arm(base: TrialConfig, name: Arm, ipc: int, seed: int, label: str = "", *, prior: Prior = PRIOR) -> Plan:
    """The trial of arm `name` at `ipc` images a class; all arms take the same student steps of the same size.

    `none`: no condensed images. `condensed_only`: no synthetic ones. `mixed`: both, in the base's share. `mixed_prior`:
    mixed, with the class prior `prior` in the place of the inversion's own; it uses no condensed image as a guide.
    `guided`: mixed_prior, under the base's guidance. `guided_only`: guided, but the student sees synthetic images
    alone. `real`: KD on all real data. So guided - mixed_prior is what the condensed images add as guides, and
    mixed_prior - mixed what a class prior gives without any.

    `label`: another name for it in tables. Where the base has `mix: concat`, the steps of the arms that mix are larger
    than those of the others. Raises `InputError` where the inversion cannot have that prior, or is told labels that
    nothing ties to its images, in an arm without a guidance.
    """
    # Here, as scripts import this beside their flags, and these import PyTorch.
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
        # Soft targets are asked of the inversion, so where there is none they go with it.
        targets=Balanced() if alone else base.targets,
        inversion=inversion,
        guidance=base.guidance if guided else NoGuidance(),
        memory=Growing() if alone else base.memory,
        pipeline=None if alone else base.pipeline,
        distiller=replace(
            distiller,
            condensed_share=share,
            share_schedule=distiller.share_schedule if both else Schedule(),
            mix=distiller.mix if both else "share",
            # Where the student sees none it says nothing, and real images are no condensed ones.
            condensed_augment=distiller.condensed_augment if both or name == "condensed_only" else "batch",
        ),
    )
    return Plan(label or name, 0 if name in ONCE else ipc, seed, config)


def _tempered(base: TrialConfig, name: Arm, prior: Prior) -> AnyInversion:
    """The base's inversion with `prior`. Raises `InputError` where it has no such field, or `name` would be `mixed`."""
    inversion, soft, own = base.inversion, base.targets.soft, "--prior-weight 0, with which no arm has the prior"
    named = {field.name for field in fields(inversion)}
    there = not prior.weight or {"oh_weight", "oh_temperature"} <= named
    accepted = f"one with the fields oh_weight and oh_temperature, such as fast; or {own}"
    require(there, f"inversion of the arm {name}", inversion.name, accepted)
    # Soft targets are probabilities at a temperature of their own, and the prior's is then that.
    theirs = getattr(base.targets, "temperature", PRIOR.temperature)
    fits = not (soft and prior.weight) or prior.temperature in (PRIOR.temperature, theirs)
    accepted = f"{theirs:g}, their own, which is taken if it is not given; or {own}"
    require(fits, f"--prior-temperature beside targets {base.targets.name}", prior.temperature, accepted)
    given = {"oh_weight": prior.weight} | ({} if soft else {"oh_temperature": prior.temperature})
    found = replace(inversion, **given) if prior.weight else inversion
    accepted = "another prior than the inversion's own; with that one mixed_prior is mixed, so leave the arm out"
    told = f"weight {prior.weight:g}, temperature {prior.temperature:g}"
    differs = name != "mixed_prior" or found != inversion
    require(differs, "prior of the arm mixed_prior (--prior-weight, --prior-temperature)", told, accepted)
    return found


def _check_tied(inversion: AnyInversion, name: Arm) -> None:
    """Raise `InputError` where nothing but a guidance, which arm `name` has not, ties labels to a generator's images.

    Another generator in this arm alone would make it no control of the guided ones.
    """
    weight, conditional = getattr(inversion, "oh_weight", 0.0), getattr(inversion, "conditional", False)
    accepted = "a number > 0: without a guidance the class prior alone ties labels to images; or conditional false"
    what = f"oh_weight of inversion {inversion.name}, conditional, in the arm {name}"
    require(weight > 0 or not conditional, what, weight, accepted)


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
