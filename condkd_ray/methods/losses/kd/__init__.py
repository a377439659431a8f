"""Distillation losses between student and teacher, one value a sample."""

from condkd_ray.methods.losses.kd.attention import Attention
from condkd_ray.methods.losses.kd.decoupled import Dkd
from condkd_ray.methods.losses.kd.loss import Answer, Hinton, KdLoss, LogitL1, SoftCrossEntropy, divergence, logit_l1

AnyKdLoss = Hinton | LogitL1 | SoftCrossEntropy | Dkd | Attention

__all__ = [
    "Answer",
    "AnyKdLoss",
    "Attention",
    "Dkd",
    "Hinton",
    "KdLoss",
    "LogitL1",
    "SoftCrossEntropy",
    "divergence",
    "logit_l1",
]
