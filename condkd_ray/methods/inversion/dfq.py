"""DFQ (Choi et al., CVPRW 2020, "Data-free network quantization with adversarial knowledge distillation").

`peers.md` A.4, read in a public re-run as a baseline.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from condkd_ray.methods.inversion.dafl import Dafl
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.inversion import bn_distance, entropy, negative_entropy
from condkd_ray.methods.losses.kd import divergence
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dfq(Unconditional):
    r"""A generator whose images surprise the student, but batch to the teacher's statistics and answers like its data.

    Minimises -adv KL(f_T(x) || f_S(x)) + bn \sum_l ||BN_l(x) - BN_l|| + ice mean_i H(p_i) - bce H(mean_i p_i)
    + guide(x, argmax f_T(x)), H the entropy to base 10 of p_i = softmax f_T(x_i): each image certain (ICE), the batch
    spread over the classes (BCE). The gradient of the KL reaches x through both networks, as in the re-run and in the
    DataFree port. The re-run has the signs of both entropies the other way round, against that purpose; the port has
    them as here. Departures: the re-run alternates five student steps and one of the generator, cools both rates along
    cosines and asks the student in training mode; here a round is `steps` generator steps and then `images_per_round`
    fresh images, the rate stays, and the student is asked in eval mode.
    """

    paper = "Choi et al., CVPRW 2020"
    ours = ("steps", "batch", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["dfq"] = "dfq"
    generator_options = Dafl.generator_options
    betas = (0.5, 0.999)
    reads_bn = True
    steps: int = 4
    """Adam steps of the generator a round: one to five of the distiller's 20, as in the re-run."""
    batch: int = 128
    """Images a generator step (256 in the re-run)."""
    latent: int = 256
    lr: float = 1e-3
    adv_weight: float = 1.0
    bn_weight: float = 0.1
    first_bn_factor: float = 5.0
    """How often the first BN layer counts in `bn`."""
    ice_weight: float = 0.1
    bce_weight: float = 0.1
    """The re-run gives bn, ice and bce one weight; the DataFree port has 1, 1 and 20."""
    oh_weight: float = 0.0
    """Of a class prior towards the teacher's argmax, our choice; at 0 there is none, as published."""
    oh_temperature: float = 1.0

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`adv`, `bn`, `ice` and `bce`, and `oh` where it has a weight."""
        return {
            "adv": -batch.mean(divergence(student(batch.images), batch.observation.logits)),
            "bn": bn_distance(batch.observation.bn, *teacher.bn, self.first_bn_factor),
            "ice": batch.mean(entropy(batch.observation.logits)),
            "bce": negative_entropy(batch.observation.logits),
            **self.optional_prior(batch),
        }
