"""Distillation losses between student and teacher, one value a sample."""

from condkd_ray.methods.losses.kd.attention import Attention as Attention
from condkd_ray.methods.losses.kd.decoupled import Dkd as Dkd
from condkd_ray.methods.losses.kd.logits import (
    Hinton as Hinton,
)
from condkd_ray.methods.losses.kd.logits import (
    LogitL1 as LogitL1,
)
from condkd_ray.methods.losses.kd.logits import (
    SoftCrossEntropy as SoftCrossEntropy,
)
from condkd_ray.methods.losses.kd.logits import (
    logit_l1 as logit_l1,
)
from condkd_ray.methods.losses.kd.loss import Answer as Answer
from condkd_ray.methods.losses.kd.loss import KdLoss as KdLoss
from condkd_ray.methods.losses.kd.loss import divergence as divergence

AnyKdLoss = Hinton | LogitL1 | SoftCrossEntropy | Dkd | Attention
