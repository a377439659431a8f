"""DFAD (Fang et al., arXiv 1912.11006, "Data-free adversarial distillation"), after the authors' released code."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from condkd_ray.core.task import BOTH, is_dense
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.kd import logit_l1
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class Dfad(Unconditional):
    """A generator of images on which the student's logits differ most from the teacher's.

    Minimises -adv D + oh CE(f_T(x), y) + guide(x, y), where D is mean|f_S(x) - f_T(x)|, and in segmentation, as in
    DFAD's code for CamVid, log(1 + mean|f_S(x) - f_T(x)|) over all pixels. Here y is argmax f_T(x), or, with
    `conditional`, the label that the generator gets. Use loss `l1`, the same distance, for the student. The gradient
    reaches x through both networks, as in the released code of DFAD. Departures: DFAD's code alternates five student
    steps, each on its own images, with one generator step; here a round has `steps` generator steps and then
    `images_per_round` fresh images. DFAD's code optionally divides its learning rates by 10 twice, and evaluates the
    student in training mode; here the rate is constant, and the student's BN statistics come from its own training
    batches only.
    """

    paper = "Fang et al., arXiv 1912.11006"
    ours = ("steps", "batch", "images_per_round", "oh_weight", "oh_temperature", "conditional")
    tasks = BOTH
    name: Literal["dfad"] = "dfad"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn"}
    dense_options: ClassVar[dict[str, Any]] = {"head": "sigmoid", "init": "normal"}
    """As in DFAD's code for CamVid, where Tanh gives pixels that are normalised to -1 to 1."""
    steps: int = 4
    """Adam steps of the generator per round. As published: one per five student steps; a round has 20 student steps by
    default. With many more, the student no longer learns from the images."""
    batch: int = 128
    """Images per generator step (256 in DFAD's code)."""
    latent: int = 256
    """Length of the latent vectors."""
    lr: float = 1e-3
    """Learning rate of Adam for the generator."""
    adv_weight: float = 1.0
    """Weight of the adversarial term, the only term as published. Under Adam its ratio to the other weights matters,
    not its size."""
    oh_weight: float = 0.0
    """Weight of a class prior towards the teacher's argmax, our choice; 0, as published, disables it."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `adv`, and `oh` if it has a weight."""
        adv = -batch.mean(logit_l1(student(batch.images), batch.observation.logits))
        if is_dense(teacher.task):
            adv = -torch.log1p(-adv)
        return {"adv": adv, **self.optional_prior(batch)}
