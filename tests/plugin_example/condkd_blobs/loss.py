"""A distillation loss: one value for each image."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from condkd_ray.methods.losses.kd import KdLoss, NetworkOutputs


@dataclass(frozen=True, kw_only=True)
class LogitL2(KdLoss):
    """Mean squared difference of the logits."""

    paper = "Ba & Caruana, NeurIPS 2014"
    name: Literal["logit_l2"] = "logit_l2"

    def __call__(self, student: NetworkOutputs, teacher: NetworkOutputs, labels: Tensor) -> Tensor:
        """Return (B,) losses of logits (B, K)."""
        return (student.logits.float() - teacher.logits.float()).square().mean(1)
