"""Terms that play against another network: the student, or a discriminator.

Letters: B batch, K classes. Sources: `methods.md` 6.1 (CMI, Fast), 2.3 (PRE-DFKD), 1.5 (discriminator: our
choice).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condkd_ray.methods.losses.kd import divergence

GanLoss = Literal["non_saturating", "hinge"]
JsReduction = Literal["mean", "batchmean"]


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus KL(teacher || student) where both still name the same class, else 0; (B, K) logits to (B,).

    It pushes an image away from what the student knows, but only while its class holds (CMI, Fast, NAYER: `adv`).
    Differentiable in both answers: the released codes of all three detach neither.
    """
    agree = student.argmax(1) == teacher.argmax(1)
    return -(divergence(student, teacher) * agree)


def jensen_shannon(
    student: Tensor, teacher: Tensor, *, temperature: float = 3.0, reduction: JsReduction = "mean"
) -> Tensor:
    """Jensen-Shannon divergence of softened answers as PRE-DFKD computes it; (B, K) logits to (B,).

    Half the sum of KL(M || P) and KL(M || Q), P and Q the probabilities of teacher and student, M their mean, all
    clamped to [0.01, 0.99]. `batchmean` sums over the classes; `mean`, as released, divides that by K. Differentiable
    in both answers: DeepInversion's released codes detach neither, PRE-DFKD's the teacher's.
    """
    p, q = (F.softmax(logits.float() / temperature, dim=1) for logits in (teacher, student))
    p, q, middle = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    terms = middle * (middle.log() - (p.log() + q.log()) / 2)
    return terms.mean(1) if reduction == "mean" else terms.sum(1)


def tell_apart(real: Tensor, fake: Tensor, form: GanLoss = "non_saturating", smoothing: float = 0.0) -> Tensor:
    """The discriminator's loss on its (B,) logits, a scalar.

    `non_saturating`: binary cross-entropy, 2 ln 2 where it knows nothing; real ones have the target 1 - `smoothing`.
    `hinge`: what each logit lacks to the right side's margin of 1; `smoothing` has no part in it.
    """
    if form == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    # BCE with target 1 - s is softplus(-x) + s x.
    return (F.softplus(-real) + smoothing * real).mean() + F.softplus(fake).mean()


def fool(fake: Tensor, form: GanLoss = "non_saturating") -> Tensor:
    """The loss of whoever made `fake`, (B,) logits to a scalar: -log D, or minus the logit under `hinge`."""
    return -fake.mean() if form == "hinge" else F.softplus(-fake).mean()


def gradient_penalty(judged: Tensor, at: Tensor) -> Tensor:
    """R1: half the mean squared norm of the gradient of (B,) logits at their inputs `at` (B, D); keeps its graph."""
    (gradient,) = torch.autograd.grad(judged.sum(), at, create_graph=True)
    return 0.5 * gradient.square().sum(1).mean()
