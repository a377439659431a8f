"""The standard arms: what differs is who sees the condensed images, the student, the inversion, both or neither."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from condkd_ray.methods.condensation import AllReal
from condkd_ray.methods.guidance import NoGuidance
from condkd_ray.methods.inversion import NoInversion
from condkd_ray.methods.memory import Growing
from condkd_ray.runs.plan import Plan
from condkd_ray.core.schedule import Schedule
from condkd_ray.methods.targets import Balanced
from condkd_ray.trial.config import TrialConfig

Arm = Literal["none", "condensed_only", "mixed", "guided", "guided_only", "real"]
ONCE = ("none", "real")
"""Arms without condensed images: one trial a seed, whatever the IPCs."""


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
