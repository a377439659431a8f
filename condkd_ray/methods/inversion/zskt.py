"""ZSKT (Micaelli and Storkey, NeurIPS 2019, "Zero-shot knowledge transfer via adversarial belief matching").

`peers.md` A.2, read in the released code. That the student also matches the teacher's attention is a matter of the
distiller's loss.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.kd import divergence
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Zskt(Unconditional):
    """A generator that looks for images on which the student does not believe what the teacher does, and nothing else.

    Minimises -adv KL(f_T(x) || f_S(x)) + guide(x, argmax f_T(x)), the norm of its gradient clipped. The gradient
    reaches x through both networks, as in the released code. Departures: the released code alternates one generator
    step and ten of the student on the same latents; here a round is `steps` generator steps and then
    `images_per_round` fresh images. It divides the KL by the number of classes, which under Adam matters for the
    clipping alone, lets the rate fall along a cosine, and asks the student in training mode; here the rate stays, and
    the student's BN statistics come from what it is taught alone.
    """

    paper = "Micaelli and Storkey, NeurIPS 2019"
    ours = ("steps", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["zskt"] = "zskt"
    generator_options: ClassVar[dict[str, Any]] = {"head": "bn"}
    steps: int = 2
    """Adam steps of the generator a round: one to ten of the distiller's 20, as published. Many more, and it runs away
    from a student that cannot follow."""
    batch: int = 128
    """Images a generator step."""
    latent: int = 100
    lr: float = 1e-3
    clip: float = 5.0
    """Largest norm of the gradient over all weights of the generator; longer ones are shortened to it."""
    adv_weight: float = 1.0
    """Of the only term as published, against a guide's."""
    oh_weight: float = 0.0
    """Of a class prior towards the teacher's argmax, our choice; at 0 there is none, as published."""
    oh_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "inversion clip", self.clip, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`, and `oh` where it has a weight."""
        adv = -batch.mean(divergence(student(batch.images), batch.observation.logits))
        return {"adv": adv, **self.optional_prior(batch)}

    def clip_gradients(self, weights: list[nn.Parameter]) -> None:
        """Shorten the whole gradient to `clip`."""
        nn.utils.clip_grad_norm_(weights, self.clip)
