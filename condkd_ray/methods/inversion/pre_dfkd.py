"""PRE-DFKD's generator (Binici et al., AAAI 2022, "Robust and resource-efficient data-free KD by generative replay").

Losses and settings follow the authors' released code. The replay is memory `generative`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.methods.inversion.inversion import StepBatch
from condkd_ray.methods.inversion.unconditional import Unconditional
from condkd_ray.methods.losses.inversion import JsReduction, jensen_shannon, negative_activation, negative_entropy
from condkd_ray.models.teacher import Teacher


@dataclass(frozen=True, kw_only=True)
class PreDfkd(Unconditional):
    r"""A generator of images with certain, class-balanced predictions of the teacher on which the student disagrees.

    Minimises oh CE(f_T(x), y) + ie \sum_c p_c log10 p_c - act mean|features| + adv (1 - clamp(JS(f_S(x), f_T(x)), 0,
    1)) + guide(x, y), where p is the batch's mean class distribution. Here y is argmax f_T(x), or, with `conditional`,
    the label that the generator gets. JS treats the teacher's logits as a constant, so that its gradient reaches x
    through the student only (as in the released code of PRE-DFKD, and in the re-runs of it and of MB-DFKD by the
    authors of LRA, CVPR 2023). Departures: PRE-DFKD's code alternates one generator step with ten student steps; here a
    round has `steps` generator steps and then `images_per_round` fresh images. PRE-DFKD's code leaves the student in
    training mode during the generator step; here the student is in eval mode, and its BN statistics come from its own
    training batches only.
    """

    paper = "Binici et al., AAAI 2022"
    ours = ("steps", "batch", "images_per_round", "oh_temperature", "conditional")
    name: Literal["pre_dfkd"] = "pre_dfkd"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8, "spectral": True, "init": "uniform"}
    batch: int = 128
    """Images per generator step (1024 in PRE-DFKD's code)."""
    lr: float = 0.02
    """Learning rate of Adam for the generator: that of PRE-DFKD's code, for batches of 1024. A tenth of it was better
    for batches of 128 on digits."""
    oh_weight: float = 1.0
    """Weight of the class prior, the cross-entropy with the teacher's argmax (with `conditional`, with the labels)."""
    oh_temperature: float = 1.0
    """Temperature of the class prior; at 1, as published, images with certain predictions have almost no gradient."""
    ie_weight: float = 5.0
    """Weight of the negative entropy of the batch's mean class distribution."""
    act_weight: float = 0.1
    """Weight of the term that rewards a large mean absolute feature."""
    adv_weight: float = 1.0
    """Weight of the adversarial term 1 - JS."""
    temperature: float = 3.0
    """Temperature of the softmax in JS."""
    js_reduction: JsReduction = "mean"
    """`mean`, as in PRE-DFKD's code: the mean over images and classes. If both networks disagree with certainty on
    every image, JS is then only 0.08 to 0.15 for 10 classes, 0.002 to 0.008 for 100 and about 0.0004 for 200, so that
    the term has almost no effect. `batchmean` sums over the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """Return `oh`, `ie`, `act` and `adv`."""
        # Constant, as in PRE-DFKD's code: a gradient through the teacher would be far larger and point elsewhere.
        constant = batch.observation.logits.detach()
        js = jensen_shannon(student(batch.images), constant, temperature=self.temperature, reduction=self.js_reduction)
        return {
            "oh": batch.oh,
            "ie": negative_entropy(batch.observation.logits),
            "act": negative_activation(batch.observation.features),
            "adv": 1 - batch.mean(js).clamp(0, 1),
        }
