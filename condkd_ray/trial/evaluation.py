"""Evaluation of a student: agreement with its teacher on the proxy set, and its score on real images.

In segmentation the score is the mean IoU, and agreement is that of pixels. The proxy set contains a few fixed images in
many seeded views. Neither is the student trained on it, nor is a set
condensed from it. Without validation data, a search optimises the agreement on it. All of this is our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condkd_ray.core.device import sent
from condkd_ray.core.method import Metrics
from condkd_ray.core.samples import UNLABELLED, Samples, unseen
from condkd_ray.core.task import SCORES, is_dense
from condkd_ray.data.augment import black_of, shift_flip, split_labels, with_labels
from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.losses.kd import divergence
from condkd_ray.methods.recognition import predicted_classes
from condkd_ray.methods.scores import mean_iou, predicted_confusion
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial.subset import TestRounds, in_round

VIEWS, DENSE_VIEWS = 32, 4
"""Views of each image of the proxy set, and in segmentation, where every pixel counts."""
DENSE_IMAGES = 8
"""Images of the proxy set in segmentation; in classification, one of each class."""
SHIFT = 0.125
"""Maximum shift, as a fraction of the image side; black pixels move in, as in the teacher's training."""
NOISE = 0.05
"""Standard deviation of the views' Gaussian noise, in the teacher's normalised space.

The views are weak on purpose: on images that no longer look like data, even a good student disagrees with its teacher.
With noise 0.2 and mixed images, agreement hardly ranked the students of Fashion-MNIST (`experiments/LOG.md`).
"""


@torch.no_grad()
def views(images: Samples, teacher: Teacher, *, seed: int) -> Samples:
    """Return V = 32 views of each of N images, with the teacher's logits: N * V samples on the teacher's device.

    Each view is shifted, mirrored at random if `teacher.flip_ok`, and noisy. In segmentation V = 4; the views have no
    logits, which would take more memory than the images, but the images' labels; pixels that the shift moved in have no
    label.
    """
    rng, count = torch.Generator().manual_seed(seed), DENSE_VIEWS if images.dense else VIEWS
    repeated = images.images.cpu().repeat(count, 1, 1, 1)
    labels = images.labels.cpu().repeat(count, *[1] * (images.labels.ndim - 1))
    if images.dense:
        repeated = with_labels(repeated, labels)
    black = black_of(teacher.black.cpu(), repeated)
    moved = shift_flip(repeated, rng=rng, share=SHIFT, flip=teacher.flip_ok, black=black)
    if images.dense:
        moved, labels = split_labels(moved)
    pixels = (moved + NOISE * torch.randn(moved.shape, generator=rng)).to(teacher.device)
    if images.dense:
        return unseen(pixels, labels.to(teacher.device))
    return Samples(pixels, labels.to(teacher.device), teacher.batched_logits(pixels))


@torch.no_grad()
def compare(student: nn.Module, proxy: Samples) -> dict[str, Tensor]:
    """Return two scalars: `agreement`, the fraction of equal predictions, and `kl`, the mean KL(teacher || student)."""
    logits = torch.cat([student(part).float() for part in proxy.images.split(512)])
    agreement = (logits.argmax(1) == proxy.logits.argmax(1)).float().mean()
    log_student, log_teacher = F.log_softmax(logits, 1), F.log_softmax(proxy.logits, 1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return {"agreement": agreement, "kl": kl}


@torch.no_grad()
def compare_pixels(student: nn.Module, proxy: Samples, teacher: Teacher) -> dict[str, Tensor]:
    """Return `agreement` and `kl` over all pixels with a label; both networks' logits are computed batch by batch."""
    parts = []
    for images, labels in zip(proxy.images.split(DENSE_IMAGES), proxy.labels.split(DENSE_IMAGES), strict=True):
        own, wanted, known = student(images).float(), teacher.logits(images), labels != UNLABELLED
        agree = (own.argmax(1) == wanted.argmax(1)).where(known, False)
        parts.append(torch.stack([part.double().sum() for part in (agree, divergence(own, wanted).where(known, 0))]))
    agreement, kl = torch.stack(parts).sum(0) / (proxy.labels != UNLABELLED).sum().clamp_min(1)
    return {"agreement": agreement, "kl": kl}


def predict(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Return the classes (N,) that `network` predicts for images normalised as the teacher's, on the CPU.

    Leaves the network in eval mode.
    """
    return _named(network, images, teacher).cpu()


def accuracy(network: nn.Module, images: RealImages, teacher: Teacher) -> float:
    """Return the fraction of images that `network` classifies correctly."""
    return accuracy_on_device(network, images, teacher).item()


def dense_confusion(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Return the confusion counts (K, K) of a segmentation network's pixels, on the teacher's device.

    See `methods.scores.confusion`. Leaves the network in eval mode.
    """
    facts = (teacher.mean, teacher.std, teacher.num_classes, teacher.device)
    return predicted_confusion(network, images, *facts)


def score_on_device(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Return the score of the teacher's task, a float64 scalar on its device: accuracy or mean IoU."""
    if is_dense(teacher.task):
        return mean_iou(dense_confusion(network, images, teacher))
    return accuracy_on_device(network, images, teacher)


def _named(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Return the predicted classes (N,) on the teacher's device."""
    return predicted_classes(network, images, teacher.mean, teacher.std, teacher.device)


def accuracy_on_device(network: nn.Module, images: RealImages, teacher: Teacher) -> Tensor:
    """Return the fraction of correctly classified images, a float64 scalar on the teacher's device."""
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
    """Return a round's metrics: agreement on the proxy set, and the score on the validation and the test images.

    Validation images are those `in_round`, test images too unless `test_rounds` is "full". A part that is None is left
    out. All values are copied to the CPU at once.
    """
    student.eval()
    score, dense = SCORES[teacher.task], is_dense(teacher.task)
    compared = compare_pixels(student, proxy, teacher) if dense else compare(student, proxy)
    found = {f"proxy/{name}": value for name, value in compared.items()}
    if val is not None:
        found[f"student/val_{score}"] = score_on_device(student, in_round(val, "subset"), teacher)
    if test is not None:
        found[f"student/test_{score}"] = score_on_device(student, in_round(test, test_rounds), teacher)
    values = torch.stack([value.double() for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))
