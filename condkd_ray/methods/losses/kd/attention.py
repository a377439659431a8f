"""Attention transfer beside Hinton's KL, as ZSKT's student learns (Micaelli and Storkey, NeurIPS 2019).

Sources: `peers.md` A.2 (weight 250, temperature 1, attention as the normalised channel mean of squared activations);
the maps are Zagoruyko and Komodakis', ICLR 2017.

Letters: B batch, C channels, H W height and width.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.methods.losses.kd.loss import Answer, KdLoss, softened
from condkd_ray.models.hooks import spatial_layers
from condkd_ray.models.teacher import Teacher

NAMES = "one or more names of layers, such as stages.0 stages.1"


@dataclass(frozen=True, kw_only=True)
class Attention(KdLoss):
    r"""tau^2 KL + weight \sum_l mean((a_l(student) - a_l(teacher))^2) over pairs of layers l and the places of maps.

    a, the attention, is the mean over the channels of squared activations, flattened and scaled to length 1. Where
    the maps of a pair differ in size, each is averaged down to the smaller height and width first (our choice).
    """

    paper = "Zagoruyko and Komodakis, ICLR 2017"
    ours = ("teacher_layers", "student_layers")
    name: Literal["attention"] = "attention"
    teacher_layers: tuple[str, ...]
    """Names of the teacher's layers, shallow to deep. There is no default: networks name their stages in their ways,
    and a name that is none is refused with those there are."""
    student_layers: tuple[str, ...]
    """Names of as many of the student's, each to be like the teacher's in its place."""
    weight: float = 250.0
    """ZSKT's, whose released code divides its KL by the number of classes: there attention counts that much more."""
    temperature: float = 1.0
    """tau of the KL; must be positive."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        require(self.weight >= 0, "attention weight", self.weight, ">= 0")
        require(bool(self.teacher_layers), "attention teacher_layers", self.teacher_layers, NAMES)
        ours, wanted = len(self.student_layers), len(self.teacher_layers)
        require(ours == wanted, "number of attention student_layers", ours, f"{wanted}, one for each of teacher_layers")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(student layer, teacher layer), in turn."""
        return tuple(zip(self.student_layers, self.teacher_layers, strict=True))

    def check(self, student: nn.Module, teacher: Teacher) -> None:
        """Raise `InputError`, with the layers that have a map, for one of either network that has none."""
        sides = {"teacher_layers": teacher.network, "student_layers": student}
        for field, network in sides.items():
            there = spatial_layers(network, teacher.image_shape)
            for name in getattr(self, field):
                require(name in there, f"attention {field}", name, ", ".join(there))

    def __call__(self, student: Answer, teacher: Answer, labels: Tensor) -> Tensor:
        """(B,) losses; both answers have the taps of `pairs`."""
        loss = softened(student.logits, teacher.logits, self.temperature)
        for ours, wanted in zip(student.taps, teacher.taps, strict=True):
            loss = loss + self.weight * distance(ours, wanted)
        return loss


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two layers' attention: (B, C, H, W) of each, with channels of its own, to (B,)."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return (attention(student, size) - attention(teacher, size)).square().mean(1)


def attention(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a layer looks: (B, C, H, W) to unit vectors (B, places), over a grid of `size`."""
    energy = F.adaptive_avg_pool2d(activations.float().square().mean(1), size)
    return F.normalize(energy.flatten(1), dim=1)
