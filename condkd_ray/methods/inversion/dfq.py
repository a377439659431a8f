"""DFQ (Choi et al., CVPRW 2020, "Data-free network quantization with adversarial knowledge distillation").

Weights and schedule follow a public re-run of DFQ as a baseline, in the CDFKD-MFS repository.
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
    r"""A generator of images on which the student fails, with BN statistics and predictions like those of real data.

    Minimises -adv KL(f_T(x) || f_S(x)) + bn \sum_l ||BN_l(x) - BN_l|| + ice mean_i H(p_i) - bce H(mean_i p_i) +
    guide(x, argmax f_T(x)), where H is the entropy to base 10 of p_i = softmax f_T(x_i): each image is classified with
    certainty (ICE), the batch is spread over the classes (BCE). The gradient of the KL reaches x through both networks,
    as in the re-run and in the DataFree port. The re-run has both entropies with the opposite sign, which contradicts
    that purpose; the port has them as here. Departures: the re-run alternates five student steps with one generator
    step, decays both rates along cosines and evaluates the student in training mode; here a round has `steps` generator
    steps and then `images_per_round` fresh images, the rate is constant, and the student is in eval mode.
    """

    paper = "Choi et al., CVPRW 2020"
    ours = ("steps", "batch", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["dfq"] = "dfq"
    generator_options = Dafl.generator_options
    betas = (0.5, 0.999)
    reads_bn = True
    steps: int = 4
    """Adam steps of the generator per round; the re-run: one for every five of the student, of which a round has 20 by
    default."""
    batch: int = 128
    """Images per generator step (256 in the re-run)."""
    latent: int = 256
    lr: float = 1e-3
    adv_weight: float = 1.0
    bn_weight: float = 0.1
    first_bn_factor: float = 5.0
    """Factor of the first BN layer in `bn`."""
    ice_weight: float = 0.1
    bce_weight: float = 0.1
    """The re-run has one common weight for bn, ice and bce; the DataFree port has 1, 1 and 20."""
    oh_weight: float = 0.0
    """Weight of a class prior towards the teacher's argmax, our choice; 0, as published, disables it."""
    oh_temperature: float = 1.0

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `adv`, `bn`, `ice` and `bce`, and `oh` if it has a weight."""
        return {
            "adv": -batch.mean(divergence(student(batch.images), batch.observation.logits)),
            "bn": bn_distance(batch.observation.bn, *teacher.bn, self.first_bn_factor),
            "ice": batch.mean(entropy(batch.observation.logits)),
            "bce": negative_entropy(batch.observation.logits),
            **self.optional_prior(batch),
        }
