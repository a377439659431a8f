"""How good a student is: against its teacher on the proxy set, and by accuracy on real images.

The proxy set is a few fixed images in many seeded views. Where nobody has validation data, this is what a search may
look at. Never trained on. All of it is our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.device import sent
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import Samples
from condkd_ray.data.augment import shift_flip
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.recognition import predicted_classes
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.subset import ROUND_SUBSET, TestRounds, in_round

VIEWS = 32
SHIFT = 0.125
"""By which an image is moved at most, of its side; black moves in, as in the teacher's training."""
NOISE = 0.05
"""Standard deviation of the views' Gaussian noise, in the teacher's space.

Weak, and no images are mixed: on what no longer looks like data a good student and its teacher disagree too. With noise
0.2 and mixing, agreement hardly ranked the students of Fashion-MNIST (`experiments/LOG.md`).
"""


@torch.no_grad()
def views(images: Samples, teacher: Teacher, *, seed: int) -> Samples:
    """Each of N images in V = 32 views, moved, mirrored where that keeps its class, and noisy; the teacher's logits."""
    rng = torch.Generator().manual_seed(seed)
    repeated = images.images.cpu().repeat(VIEWS, 1, 1, 1)
    labels = images.labels.cpu().repeat(VIEWS)
    moved = shift_flip(repeated, rng=rng, share=SHIFT, flip=teacher.flip_ok, black=teacher.black.to(repeated))
    pixels = (moved + NOISE * torch.randn(moved.shape, generator=rng)).to(teacher.device)
    return Samples(pixels, labels.to(teacher.device), teacher.answers(pixels))


@torch.no_grad()
def compare(student: nn.Module, proxy: Samples) -> dict[str, Tensor]:
    """`agreement`, the share of views both name alike, and `kl`, mean KL(teacher || student); scalars."""
    logits = torch.cat([student(part).float() for part in proxy.images.split(512)])
    agreement = (logits.argmax(1) == proxy.logits.argmax(1)).float().mean()
    log_student, log_teacher = F.log_softmax(logits, 1), F.log_softmax(proxy.logits, 1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return {"agreement": agreement, "kl": kl}


def predict(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """(N,) predicted classes, on the CPU, of a network that reads the teacher's space; leaves it in eval mode."""
    return _named(network, images, teacher).cpu()


def accuracy(network: nn.Module, images: RealImages, teacher: Teacher) -> float:
    """Share of images whose class is named right."""
    return _right(network, images, teacher).item()


def _named(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """(N,) predicted classes, on the teacher's device."""
    return predicted_classes(network, images, teacher.mean, teacher.std, teacher.device)


def _right(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Share of images whose class is named right, a scalar on the teacher's device."""
    return (_named(network, images, teacher) == sent(images.labels, teacher.device)).double().mean()


@torch.no_grad()
def evaluate(
    student: nn.Module,
    *,
    teacher: Teacher,
    proxy: Samples,
    val: RealImages | None,
    test: RealImages | None,
    test_rounds: TestRounds = "subset",
) -> Metrics:
    """A round's report: agreement with the teacher on the proxy set, accuracy on validation and test images.

    Of the latter two at most `ROUND_SUBSET` are measured, or all test images. Those that are None are left out. One
    host read in all.
    """
    student.eval()
    found = {f"proxy/{name}": value for name, value in compare(student, proxy).items()}
    if val is not None:
        found["student/val_accuracy"] = _right(student, val[slice(ROUND_SUBSET)], teacher)
    if test is not None:
        found["student/test_accuracy"] = _right(student, in_round(test, test_rounds), teacher)
    values = torch.stack([value.double() for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))
