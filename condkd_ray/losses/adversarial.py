"""Terms that play against another network: the student, or a discriminator.

Letters: B batch, K classes. Sources: `methods.md` 6.1 (CMI, Fast), 1.5 (discriminator: our choice).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus KL(teacher || student) where both still name the same class, else 0; (B, K) logits to (B,).

    It pushes an image away from what the student knows, but only while its class holds (CMI, Fast: `adv`).
    """
    agree = student.argmax(1) == teacher.argmax(1)
    log_student = F.log_softmax(student.float(), dim=1)
    log_teacher = F.log_softmax(teacher.float(), dim=1)
    kl = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return -(kl * agree)


def tell_apart(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its (B,) logits: binary cross-entropy; 2 ln 2 where it knows nothing."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def fool(fake: Tensor) -> Tensor:
    """The non-saturating loss of whoever made `fake`, (B,) logits to a scalar."""
    return F.softplus(-fake).mean()
