"""Distillation losses between student and teacher, one value a sample."""

from condkd_ray.methods.losses.kd.attention import Attention as Attention
from condkd_ray.methods.losses.kd.decoupled import Dkd as Dkd
from condkd_ray.methods.losses.kd.loss import Answer as Answer
from condkd_ray.methods.losses.kd.loss import (
    Hinton as Hinton,
)
from condkd_ray.methods.losses.kd.loss import KdLoss as KdLoss
from condkd_ray.methods.losses.kd.loss import (
    LogitL1 as LogitL1,
)
from condkd_ray.methods.losses.kd.loss import (
    SoftCrossEntropy as SoftCrossEntropy,
)
from condkd_ray.methods.losses.kd.loss import divergence as divergence
from condkd_ray.methods.losses.kd.loss import (
    logit_l1 as logit_l1,
)

AnyKdLoss = Hinton | LogitL1 | SoftCrossEntropy | Dkd | Attention
