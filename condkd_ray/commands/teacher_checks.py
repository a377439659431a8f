"""Whether a teacher and a folder of images belong together: channels, classes, their order, normalisation, mirroring.

What is wrong with any of these looks like a bad teacher, or like guidance that does not help; so it is asked first.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from condkd_ray.core.method import require
from condkd_ray.data.datasets import Dataset, RealImages
from condkd_ray.methods.condensation.imported import least_recognised
from condkd_ray.models.teacher import Teacher
from condkd_ray.models.weights import read_weights
from condkd_ray.trial.evaluation import accuracy, predict

MIRRORED = 0.9
"""Part of the accuracy that mirrored images must keep to count as of their class (our choice)."""

MORE_IN_ORDER = 0.1
"""Share of the images that another order of the folders must win to be held for the teacher's (our choice)."""


def check_form(network: nn.Module, weights: Path, dataset: Dataset, images: Path) -> None:
    """Raise `InputError` where the weights are those of `network` but for the number of channels or classes.

    `network`: built for the images of `dataset`. Any other misfit is left to whoever loads the weights.
    """
    own, given = network.state_dict(), read_weights(weights)
    first = next((name for name, tensor in own.items() if tensor.ndim == 4), "")
    if first in given and given[first].ndim == 4 and given[first].shape[0] == own[first].shape[0]:
        reads, there = given[first].shape[1], dataset.image_shape[0]
        remedy = "save them as RGB" if reads == 3 else "save them in grey"
        require(
            reads == there, f"channels of the images in {images}", there, f"{reads}, which the teacher reads: {remedy}"
        )
    last = [name for name, tensor in own.items() if tensor.ndim in (1, 2)][-1]
    if last in given and given[last].shape[1:] == own[last].shape[1:]:
        check_classes(given[last].shape[0], dataset, images)


def check_classes(known: int, dataset: Dataset, images: Path) -> None:
    """Raise `InputError` where there are more or fewer folders than the teacher has classes."""
    accepted = f"{known}, one for each class of the teacher, in their order"
    require(dataset.num_classes == known, f"number of class folders in {images}", dataset.num_classes, accepted)


def check_known(teacher: Teacher, dataset: Dataset, images: Path, *, force: bool) -> tuple[float, Tensor]:
    """The share of all images that the teacher names as their folder, and its answers (N,) for the held-out ones.

    Raises `InputError` with the likely cause, unless `force`, where that is hardly more than chance, or where the
    folders in another order would fit the teacher's classes better.
    """
    answers = [predict(teacher.network, part, teacher) for part in (dataset.train, dataset.test)]
    labels = torch.cat([dataset.train.labels, dataset.test.labels])
    found = torch.cat(answers)
    share, least = (found == labels).double().mean().item(), least_recognised(dataset.num_classes)
    matched, names = _best_order(labels, found, dataset.class_names)
    ordered = matched - share <= MORE_IN_ORDER
    cause = (
        "likely causes: another --mean and --std or --size than it was trained with, or images of other classes"
        if ordered
        else f"in the order {', '.join(names)} it would be {matched:.3f}: write that to its classes.txt, a name a line"
    )
    accepted = f"more than {least:.3f} of {dataset.num_classes} classes in the teacher's order; {cause}; or --force"
    fits = force or (ordered and share > least)
    require(fits, f"teacher's accuracy on the images in {images}", round(share, 3), accepted)
    return share, answers[1]


def _best_order(labels: Tensor, found: Tensor, names: Sequence[str]) -> tuple[float, list[str]]:
    """The folders in the order that fits the answers best, and the share that would then be right."""
    from scipy.optimize import linear_sum_assignment  # not at the top, as every command would wait for it

    count = len(names)
    pairs = (found * count + labels).bincount(minlength=count * count).view(count, count)
    _, order = linear_sum_assignment(pairs.numpy(), maximize=True)
    right = pairs[torch.arange(count), torch.as_tensor(order)].sum().item()
    return right / len(labels), [names[int(place)] for place in order]


def mirrors(teacher: Teacher, images: RealImages) -> bool:
    """Whether the teacher names mirrored images (almost) as well."""
    mirrored = RealImages(images.pixels.flip(3), images.labels)
    return accuracy(teacher.network, mirrored, teacher) >= MIRRORED * accuracy(teacher.network, images, teacher)
