"""DFQ (Choi et al., CVPRW 2020, "Data-free network quantization with adversarial knowledge distillation").

Weights and schedule follow "the re-run": DFQ as a baseline in the public repository of CDFKD-MFS. "The port" is DFQ in
DataFree, the repository of CMI's authors.
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

    Minimises -adv KL(f_T(x) || f_S(x)) + bn \sum_l ||BN_l(x) - BN_l|| + ice mean_i H(p_i) - bce H(mean_i p_i) + oh
    CE(f_T(x), y) + guide(x, y), where H is the entropy to base 10 and p_i = softmax f_T(x_i): each image is classified
    with certainty (ICE), the batch is spread over the classes (BCE). Here y is argmax f_T(x), or, with `conditional`,
    the label that the generator gets. The gradient of the KL reaches x through both networks, as in the re-run and in
    the port. The re-run has both entropies with the opposite sign, which contradicts that purpose; the port has them as
    here. Departures: the re-run alternates five student steps with one generator step, decays both rates along cosines
    and evaluates the student in training mode; here a round has `steps` generator steps and then `images_per_round`
    fresh images, the rate is constant, and the student is in eval mode.
    """

    paper = "Choi et al., CVPRW 2020"
    ours = ("steps", "batch", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    name: Literal["dfq"] = "dfq"
    generator_options = Dafl.generator_options
    betas = (0.5, 0.999)
    reads_bn = True
    steps: int = 4
    """Adam steps of the generator per round. In the re-run: one per five student steps; a round has 20 student steps by
    default."""
    batch: int = 128
    """Images per generator step (256 in the re-run of DFQ in CDFKD-MFS)."""
    latent: int = 256
    """Length of the latent vectors."""
    lr: float = 1e-3
    """Learning rate of Adam for the generator."""
    adv_weight: float = 1.0
    """Weight of the adversarial term, the KL divergence between teacher and student."""
    bn_weight: float = 0.1
    """Weight of the distance between the BN statistics of the images and the teacher's."""
    first_bn_factor: float = 5.0
    """Factor of the first BN layer in `bn`."""
    ice_weight: float = 0.1
    """Weight of each image's own entropy."""
    bce_weight: float = 0.1
    """Weight of the negative entropy of the batch's mean class distribution. The re-run of DFQ in CDFKD-MFS has one
    common weight for bn, ice and bce; the port in DataFree has 1, 1 and 20."""
    oh_weight: float = 0.0
    """Weight of a class prior towards the teacher's argmax, our choice; 0, as published, disables it."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `adv`, `bn`, `ice` and `bce`, and `oh` if it has a weight."""
        return {
            "adv": -batch.mean(divergence(student(batch.images), batch.observation.logits)),
            "bn": bn_distance(batch.observation.bn, *teacher.bn, self.first_bn_factor),
            "ice": batch.mean(entropy(batch.observation.logits)),
            "bce": negative_entropy(batch.observation.logits),
            **self.optional_prior(batch),
        }
