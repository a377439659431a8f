"""Base class of the hosts whose generator makes images of given classes: CMI, Fast, NAYER."""

import torch
from torch import Tensor, nn

from condkd_ray.data.augment import black_of, shift_flip
from condkd_ray.methods.inversion.inversion import Host, State, StepBatch
from condkd_ray.methods.losses.inversion import bn_distance, disagreement
from condkd_ray.models.teacher import Teacher


class Conditional(Host[State]):
    """Base class of the hosts that match BN statistics and target classes; their generators output pixels in [0, 1].

    This class is not a dataclass: each host declares the fields used here itself, in its own order.
    """

    reads_bn = True
    starts_from_images = True
    allows_zero_lr = True
    shift: float

    def augment(self, images: Tensor, *, teacher: Teacher, rng: torch.Generator) -> Tensor:
        """Return the images (B, C, H, W), shifted and flipped; black moves in.

        The released code of CMI, Fast and NAYER does the same: it crops [0, 1] pixels, then normalises.
        """
        return shift_flip(
            images, rng=rng, share=self.shift, flip=teacher.flip_ok, black=black_of(teacher.black, images)
        )

    def terms(self, batch: StepBatch, *, bn: Tensor, teacher: Teacher, student: nn.Module | None) -> dict[str, Tensor]:
        """Return `bn` for the statistics `bn` (2, S), `oh`, and `adv`, which is 0 if `student` is None."""
        distance, oh = bn_distance(bn, *teacher.bn), batch.oh
        adv = torch.zeros_like(oh)
        if student is not None:
            adv = batch.mean(disagreement(student(batch.augmented), batch.observation.logits))
        return {"bn": distance, "oh": oh, "adv": adv}
