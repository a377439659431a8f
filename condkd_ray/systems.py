"""The published systems, each by the parts it is made of: what a config has to say to be that paper.

Parts keep their own defaults. What a paper leaves open, and what all have in common here (the student's steps, its
optimiser, a condensed set), stays as in the config it is put into.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from condkd_ray.inversion import (
    AnyInversion,
    Cmi,
    Dafl,
    DeepInversion,
    Dfad,
    Dfq,
    Fast,
    Nayer,
    PreDfkd,
    SoftTarget,
    Zskt,
)
from condkd_ray.losses.kd import AnyKdLoss, Hinton, LogitL1, SoftCrossEntropy
from condkd_ray.memory import AnyMemory, Bank, Generative, Growing, Latest, Prioritized
from condkd_ray.targets import AnyTargets, Balanced, Soft
from condkd_ray.trial import TrialConfig
from condkd_ray.weighing import AnyWeighing, Equal, Modulating

PLAIN_KL = Hinton(temperature=1.0)


@dataclass(frozen=True, kw_only=True)
class System:
    """The parts of a paper."""

    inversion: AnyInversion
    memory: AnyMemory = Growing()
    loss: AnyKdLoss = Hinton()
    targets: AnyTargets = Balanced()
    weighing: AnyWeighing = Equal()

    def into(self, base: TrialConfig, *, most_steps: int | None = None, **sizes: int | None) -> TrialConfig:
        """`base` made that system. `sizes`: fields of the inversion (batch, width) to set, where it has them.

        `most_steps`: to which its inversion's steps a round are cut down where they are more.
        """
        own = {field.name: getattr(self.inversion, field.name) for field in fields(self.inversion)}
        given = {name: size for name, size in sizes.items() if name in own and size is not None}
        if most_steps is not None:
            given["steps"] = min(own["steps"], most_steps)
        inversion = replace(self.inversion, **given)
        distiller = replace(base.distiller, loss=self.loss)
        parts = {"memory": self.memory, "targets": self.targets, "weighing": self.weighing, "distiller": distiller}
        return replace(base, inversion=inversion, **parts)


SYSTEMS = {
    "deep_inversion": System(inversion=DeepInversion()),
    "dafl": System(inversion=Dafl(), memory=Latest(), loss=PLAIN_KL),
    "zskt": System(inversion=Zskt(), memory=Latest(), loss=PLAIN_KL),
    "dfad": System(inversion=Dfad(), memory=Latest(), loss=LogitL1()),
    "dfq": System(inversion=Dfq(), memory=Latest()),
    "soft_target": System(inversion=SoftTarget(), loss=SoftCrossEntropy(), targets=Soft()),
    "cmi": System(inversion=Cmi()),
    "mb_dfkd": System(inversion=PreDfkd(), memory=Bank(), loss=LogitL1()),
    "pre_dfkd": System(inversion=PreDfkd(), memory=Generative(), loss=LogitL1()),
    "fast": System(inversion=Fast()),
    "nayer": System(inversion=Nayer()),
    "ssd_kd": System(inversion=Fast(), memory=Prioritized(), weighing=Modulating()),
}
"""In the order of their years."""
Name = Literal[
    "deep_inversion", "dafl", "zskt", "dfad", "dfq", "soft_target",
    "cmi", "mb_dfkd", "pre_dfkd", "fast", "nayer", "ssd_kd",
]  # fmt: skip
