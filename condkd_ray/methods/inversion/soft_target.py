"""Z. Wang, AAAI 2021, arXiv 2104.04868, "Data-free knowledge distillation with soft targeted transfer set synthesis".

The soft targets themselves are in `methods/targets.py`, together with the sources of loss and settings.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.pixelwise import Pixelwise
from condkd_ray.methods.losses.inversion import negative_activation


@dataclass(frozen=True, kw_only=True)
class SoftTarget(Pixelwise):
    """Pixel-space inversion towards soft targets; it needs no batch normalisation, so it works for LeNet.

    Minimises over images x, for targets y: oh H(y, softmax(f_T(x) / tau)) - act mean|features| + guide(x, y). The
    targets of a round are the same in all of its steps; tau is the temperature of soft targets, and `oh_temperature`
    for labels. As in DeepInversion, our choice: images start as Gaussian noise, pixels are clamped to the valid range,
    the images of the step with the lowest loss are kept, and the whole batch is rolled by up to 2 of 32 pixels and
    mirrored with probability 1/2 (a public re-implementation likewise, by up to 4).
    """

    paper = "Z. Wang, AAAI 2021"
    ours = ("steps", "batch", "act_weight", "shift", "oh_temperature")
    name: Literal["soft_target"] = "soft_target"
    betas = (0.5, 0.99)
    steps: int = 100
    """Adam steps per round (a public re-implementation: 1000 at rate 0.1 or 1500 at rate 1e-3; ZSKD: 1500 at 1e-3)."""
    batch: int = 128
    """Images per round (256 or 512 in a public re-implementation)."""
    oh_weight: float = 1.0
    """Weight of the class prior, the cross-entropy between the teacher's predictions and the targets."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    act_weight: float = 0.01
    """Weight of the mean absolute feature. The paper has 0.05 for LeNet-5 and 0.1 for AlexNet, but the scale of its
    term is not known. The gradient of the cross-entropy falls with the square of tau: at tau 20 the paper's values
    outweigh it, and all images excite a few classes. On digits, 20 steps, 12 rounds, one run each, the validation
    accuracy at 0, 0.01 and 0.1 was 0.38, 0.61, 0.05 (lenet5) and 0.78, 0.85, 0.73 (resnet-8-16)."""

    def terms(self, batch: StepBatch, **_: object) -> dict[str, Tensor]:
        """Return `oh` and `act`."""
        return {
            "oh": batch.oh,
            "act": negative_activation(batch.observation.features),
        }
