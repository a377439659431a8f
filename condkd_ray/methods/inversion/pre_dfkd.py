"""PRE-DFKD's generator (Binici et al., AAAI 2022, "Robust and resource-efficient data-free KD by generative replay").

`methods.md` 2.2 to 2.4 and `peers.md` A.9, read in the released code. What the student rehearses is a memory's matter.
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
    r"""A generator whose images the teacher finds certain, evenly spread and exciting, and the student surprising.

    Minimises oh CE(f_T(x), argmax f_T(x)) + ie \sum_c p_c log10 p_c - act mean|features|
    + adv (1 - clamp(JS(f_S(x), f_T(x)), 0, 1)) + guide(x, argmax f_T(x)), p the batch's mean class distribution. JS
    takes the teacher's answer as a constant, so that its gradient reaches x through the student alone (the released
    code, and LRA's re-runs of it and of MB-DFKD).
    Departures: the released code alternates one generator step and ten of the student; here a round is `steps`
    generator steps and then `images_per_round` fresh images. It leaves the student in training mode while the
    generator learns; here it is asked in eval mode, and its BN statistics come from what it is taught alone.
    """

    paper = "Binici et al., AAAI 2022"
    ours = ("steps", "batch", "images_per_round", "oh_temperature", "conditional")
    name: Literal["pre_dfkd"] = "pre_dfkd"
    generator_options: ClassVar[dict[str, Any]] = {"head": "tanh_bn", "eps": 0.8, "spectral": True, "init": "uniform"}
    batch: int = 128
    """Images a generator step (1024 in the released code)."""
    lr: float = 0.02
    """As released, for batches of 1024. A tenth of it served batches of 128 better on digits."""
    oh_weight: float = 1.0
    oh_temperature: float = 1.0
    ie_weight: float = 5.0
    act_weight: float = 0.1
    adv_weight: float = 1.0
    temperature: float = 3.0
    """Of the softened answers in JS."""
    js_reduction: JsReduction = "mean"
    """`mean` is as released: over images and classes. Where both confidently disagree on every image JS is then only
    0.08 to 0.15 for 10 classes, 0.002 to 0.008 for 100 and about 0.0004 for 200, so that the term hardly acts.
    `batchmean` sums over the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "inversion temperature", self.temperature, "> 0")

    def terms(self, batch: StepBatch, *, teacher: Teacher, student: nn.Module) -> dict[str, Tensor]:
        """`oh`, `ie`, `act` and `adv`."""
        # Constant, as released: through the teacher's answer this term would push far harder, and another way.
        constant = batch.observation.logits.detach()
        js = jensen_shannon(student(batch.images), constant, temperature=self.temperature, reduction=self.js_reduction)
        return {
            "oh": batch.oh,
            "ie": negative_entropy(batch.observation.logits),
            "act": negative_activation(batch.observation.features),
            "adv": 1 - batch.mean(js).clamp(0, 1),
        }
