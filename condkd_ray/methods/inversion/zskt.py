"""ZSKT (Micaelli and Storkey, NeurIPS 2019, "Zero-shot knowledge transfer via adversarial belief matching").

Losses and settings follow the authors' released code. For the student's attention term see distiller loss `attention`.
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
    """A generator of images on which the student's predictions differ most from the teacher's.

    Minimises -adv KL(f_T(x) || f_S(x)) + oh CE(f_T(x), y) + guide(x, y), with the gradient clipped by its norm. Here y
    is argmax f_T(x), or, with `conditional`, the label that the generator gets. The gradient reaches x through both
    networks, as in the released code of ZSKT. Departures: ZSKT's code alternates one generator step with ten student
    steps on the same latents; here a round has `steps` generator steps and then `images_per_round` fresh images. ZSKT's
    code divides the KL by the number of classes, which under Adam affects only the clipping, decays the rate along a
    cosine, and evaluates the student in training mode; here the rate is constant, and the student's BN statistics come
    from its own training batches only.
    """

    paper = "Micaelli and Storkey, NeurIPS 2019"
    ours = ("steps", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["zskt"] = "zskt"
    generator_options: ClassVar[dict[str, Any]] = {"head": "bn"}
    steps: int = 2
    """Adam steps of the generator per round. As published: one per ten student steps; a round has 20 student steps by
    default. With many more, the student no longer learns from the images."""
    batch: int = 128
    """Images per generator step."""
    latent: int = 100
    """Length of the latent vectors."""
    lr: float = 1e-3
    """Learning rate of Adam for the generator."""
    clip: float = 5.0
    """Largest norm of the gradient over all weights of the generator; a larger gradient is scaled down to it."""
    adv_weight: float = 1.0
    """Weight of the adversarial term, the only term as published. Its ratio to the other weights matters, and `clip`
    acts on the weighted gradient."""
    oh_weight: float = 0.0
    """Weight of a class prior towards the teacher's argmax, our choice; 0, as published, disables it."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "inversion clip", self.clip, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `adv`, and `oh` if it has a weight."""
        adv = -batch.mean(divergence(student(batch.images), batch.observation.logits))
        return {"adv": adv, **self.optional_prior(batch)}

    def clip_gradients(self, weights: list[nn.Parameter]) -> None:
        """Scale the whole gradient in place down to norm `clip` if it is larger."""
        nn.utils.clip_grad_norm_(weights, self.clip)
