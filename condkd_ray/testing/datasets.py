"""Checks of the contract `condkd_ray.data.datasets.DataSource`."""

import torch

from condkd_ray.core.samples import MASK, UNLABELLED
from condkd_ray.core.task import is_dense
from condkd_ray.data.datasets import DataSource, load
from condkd_ray.testing.states import expect


def check_dataset(source: DataSource) -> None:
    """Check that two reads give equal images of at least 2 classes, and that all images have one shape.

    With `task = "segmentation"`, it also checks that each pixel has a label. Raises `AssertionError` with the rule that
    is broken.
    """
    first, again = load(source), load(source)
    expect(first.digest == again.digest, "two reads give the same images, labels and splits")
    expect(first.name == source.name, "the data set has the name of its class")
    expect(first.task == source.task, "the data set has the task of its class")
    expect(len(first.class_names) == first.num_classes >= 2, "there are at least two classes, each with a name")
    for part in (first.train, first.test, *([] if first.val is None else [first.val])):
        expect(part.pixels.dtype == torch.uint8, "pixels are uint8")
        expect(tuple(part.pixels.shape[1:]) == first.image_shape, "images of all splits have the same shape")
        expect(int(part.labels.max()) < first.num_classes, "labels are class indices")
        if is_dense(first.task):
            sides = (len(part), *first.image_shape[1:])
            expect(part.labels.dtype == MASK and part.labels.shape == sides, "each pixel has a label, int16 (N, H, W)")
            expect(int(part.labels.min()) >= UNLABELLED, "labels are class indices, or -1 for no class")
            expect(bool((part.labels != UNLABELLED).flatten(1).any(1).all()), "each image has a pixel with a class")
