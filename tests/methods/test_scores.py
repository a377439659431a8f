import math

import pytest
import torch
from reference import segmentation as reference
from torch import nn

from condkd_ray.data.datasets import RealImages
from condkd_ray.methods.scores import (
    class_iou,
    confusion,
    constant_iou,
    mean_iou,
    named_iou,
    predicted_confusion,
)

K = 4


def masks(count, seed, lowest=0, highest=K):
    return torch.randint(lowest, highest, (count, 5, 7), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("highest", [K, K - 1], ids=["all classes", "a class that is absent"])
@pytest.mark.parametrize("lowest", [0, -1], ids=["all labelled", "some without a label"])
def test_iou_equals_the_reference(highest, lowest):
    predicted, labels = masks(3, 0, 0, highest), masks(3, 1, lowest, highest)
    wanted = reference.iou(predicted.flatten(1).tolist(), labels.flatten(1).tolist(), K)
    found = class_iou(confusion(predicted, labels, K))
    assert found.tolist() == pytest.approx(wanted, nan_ok=True, abs=1e-12)
    assert math.isnan(wanted[-1]) == (highest < K)
    there = [value for value in wanted if not math.isnan(value)]
    assert mean_iou(confusion(predicted, labels, K)).item() == pytest.approx(sum(there) / len(there), abs=1e-12)


def test_confusion_counts_labels_in_rows_and_leaves_out_pixels_without_a_label():
    labels, predicted = torch.tensor([[0, 0, 1, -1]]), torch.tensor([[0, 1, 1, 0]])
    assert confusion(predicted, labels, 2).tolist() == [[1, 1], [0, 1]]
    assert confusion(predicted, labels.to(torch.int16), 2).tolist() == [[1, 1], [0, 1]]


def test_the_best_constant_prediction_is_that_of_the_most_frequent_class():
    labels = masks(6, 2)
    constants = [mean_iou(confusion(torch.full_like(labels, k), labels, K)).item() for k in range(K)]
    assert constant_iou(confusion(labels, labels, K)) == pytest.approx(max(constants), abs=1e-12)


def test_iou_by_name_leaves_out_classes_without_pixels():
    counts = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert named_iou(counts, ["sky", "road", "sign"]) == pytest.approx({"sky": 3 / 4, "road": 4 / 5})


class Brightest(nn.Module):
    """Predicts the channel of the largest value of each pixel, and counts the images that it has seen."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images


def test_images_are_predicted_part_by_part_as_the_teacher_sees_them(monkeypatch):
    monkeypatch.setattr("condkd_ray.methods.scores.PIXELS", 2 * 5 * 7)
    pixels = torch.randint(0, 256, (5, 3, 5, 7), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    labels = masks(5, 4, -1, 3).to(torch.int16)
    network = Brightest()
    found = predicted_confusion(network, RealImages(pixels, labels), (0.0,) * 3, (1.0,) * 3, 3)
    assert network.seen == 5
    assert torch.equal(found, confusion(pixels.argmax(1), labels, 3))
    assert found.sum() == (labels >= 0).sum()
