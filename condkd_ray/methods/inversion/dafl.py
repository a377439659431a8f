"""DAFL (Chen et al., ICCV 2019, "Data-free learning of student networks"): an unconditional generator.

Formulas and weights: `peers.md` A.1 (read in the authors' released code).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from condkd_ray.methods.inversion.host import Look
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.priors import negative_activation, negative_entropy
from condkd_ray.models.generator import Generator
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dafl(Unconditional):
    r"""A generator whose images the teacher finds certain, equally spread over the classes, and exciting.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - a mean|features| + guide(x, argmax f_T(x)),
    p the batch's mean class distribution. Departure: the official code steps generator and student in one backward
    pass; here a round is `steps` generator steps and then `images_per_round` fresh images for the student.
    """

    paper = "Chen et al., ICCV 2019"
    ours = ("steps", "batch", "images_per_round")
    name: Literal["dafl"] = "dafl"
    batch: int = 128
    """Images a generator step (512 to 1024 in the official code)."""
    oh_weight: float = 0.05
    ie_weight: float = 5.0
    act_weight: float = 0.01

    def build(self, teacher: Teacher) -> Generator:
        """BN eps 0.8 and a final BN without affine, as the official code."""
        return Generator(self.latent, self.width, teacher.image_shape, head="tanh_bn", eps=0.8)

    def terms(self, look: Look, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`oh`, `ie` and `act`."""
        return {
            "oh": look.oh,
            "ie": negative_entropy(look.seen.logits),
            "act": negative_activation(look.seen.features),
        }
