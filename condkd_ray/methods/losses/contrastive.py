"""Instance discrimination: an image's two views are to be more alike than views of any two images.

Letters: B images of the batch, N cached ones, D features. Source: `peers.md` A.6 (CMI, read in the released code).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_discrimination(local: Tensor, whole: Tensor, count: int, temperature: float = 0.1) -> Tensor:
    """InfoNCE of unit vectors, (B + N, D) twice, to a scalar; the first `count` = B rows are the batch, N may be 0.

    Each local view has to name, among all, its own global view by their inner products over `temperature`. Nothing
    flows back into the global side `whole`. The means over the batch and over the cached rows are added up, so that
    the batch's share does not shrink as the cache fills.
    """
    with torch.autocast(local.device.type, enabled=False):
        alike = local.float() @ whole.detach().float().T / temperature
        losses = F.cross_entropy(alike, torch.arange(len(alike), device=alike.device), reduction="none")
    current = losses[:count].mean()
    return current + losses[count:].mean() if len(losses) > count else current
