"""DFAD (Fang et al., arXiv 1912.11006, "Data-free adversarial distillation"): `peers.md` A.3 (released code)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.kd import logit_l1
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dfad(Unconditional):
    """A generator that looks for images on which the student's logits are far from the teacher's, and nothing else.

    Minimises -adv mean|f_S(x) - f_T(x)| + guide(x, argmax f_T(x)); its student is to be taught by the same distance,
    loss `l1`. The gradient reaches x through both networks, as in the released code. Departures: the released code
    alternates five student steps, each on images of its own, and one of the generator; here a round is `steps`
    generator steps and then `images_per_round` fresh images. Its rates may be divided by 10 twice, and it asks the
    student in training mode; here the rate stays, and the student's BN statistics come from what it is taught alone.
    """

    paper = "Fang et al., arXiv 1912.11006"
    ours = ("steps", "batch", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["dfad"] = "dfad"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn"}
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step (256 in the released code)."""
    latent: int = 256
    lr: float = 1e-3
    adv_weight: float = 1.0
    """Of the only term as published, against a guide's."""
    oh_weight: float = 0.0
    """Of a class prior towards the teacher's argmax, our choice; at 0 there is none, as published."""
    oh_temperature: float = 1.0

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`, and `oh` where it has a weight."""
        adv = -batch.mean(logit_l1(student(batch.images), batch.observation.logits))
        return {"adv": adv, **self.optional_prior(batch)}
