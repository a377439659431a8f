"""Z. Wang, AAAI 2021, arXiv 2104.04868, "Data-free knowledge distillation with soft targeted transfer set synthesis".

What the teacher is to answer is `methods/targets.py`, which names where loss, settings and traps were read.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.losses.inversion import negative_activation


@dataclass(frozen=True, kw_only=True)
class SoftTarget(Pixelwise):
    r"""Pixel-space inversion towards answers, without batch normalisation: it works for LeNet.

    Minimises over images x, for targets y: oh H(y, softmax(f_T(x) / tau)) - act mean|features| + guide(x, y). The
    targets of a round stay the same in all its steps; tau is theirs, `oh_temperature` for labels. As in DeepInversion,
    our choice: Gaussian noise to begin with, pixels kept in the valid range, the images of lowest loss kept, and the
    whole batch rolled by up to 2 of 32 pixels and mirrored by one coin (the re-implementation: likewise, by up to 4).
    """

    paper = "Z. Wang, AAAI 2021"
    ours = ("steps", "batch", "act_weight", "shift", "oh_temperature")
    name: Literal["soft_target"] = "soft_target"
    betas = (0.5, 0.99)
    steps: int = 100
    """Adam steps a round (1000 at rate 0.1 or 1500 at rate 1e-3 in a re-implementation, 1500 at 1e-3 in ZSKD)."""
    batch: int = 128
    """Images a round (256 or 512 in the re-implementation)."""
    oh_weight: float = 1.0
    oh_temperature: float = 1.0
    act_weight: float = 0.01
    """The paper: 0.05 for LeNet-5, 0.1 for AlexNet, of a scale not known. Cross-entropy's gradient falls with the
    square of tau: at 20 those outweigh it, and all images excite a few classes. On digits, 20 steps, 12 rounds, one
    run each, validation accuracy at 0, 0.01 and 0.1: 0.38, 0.61, 0.05 (lenet5); 0.78, 0.85, 0.73 (resnet-8-16)."""

    def terms(self, batch: StepBatch, **_: object) -> dict[str, Tensor]:
        """`oh` and `act`."""
        return {
            "oh": batch.oh,
            "act": negative_activation(batch.observation.features),
        }
