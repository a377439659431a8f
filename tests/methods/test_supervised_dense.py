"""Supervised training on labels per pixel."""

import math
from dataclasses import replace

import pytest
import torch
from patches import CLASSES, SHAPE, network, patch_set, patches
from torch import Tensor, nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED
from condkd_ray.methods.scores import mean_iou, predicted_confusion
from condkd_ray.methods.supervised import Supervised, TeacherConfig, as_teacher, loss_and_accuracy
from condkd_ray.models import DeepLabResNet, ResNet

NORM = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
"""Leaves pixels as they are."""


def test_training_lifts_the_mean_iou_and_returns_the_pixel_accuracy():
    module, data = network(), patch_set()
    before = mean_iou(predicted_confusion(module, data.test, data.mean, data.std, CLASSES))
    known = {"mean": data.mean, "std": data.std, "flip_ok": True, "rng": Streams(0)}
    metrics = Supervised(epochs=10, batch=8, lr=0.1).train(module, data.train.pixels, data.train.labels, **known)
    after = mean_iou(predicted_confusion(module, data.test, data.mean, data.std, CLASSES))
    assert before < 0.4
    assert after > 0.9
    assert metrics["teacher/train_accuracy"] > 0.9
    assert not module.training


class Spy(nn.Module):
    """Keeps the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, CLASSES, 1)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return self.layer(images)


def test_labels_move_with_their_pixels_and_black_has_none(monkeypatch):
    targets = []

    def kept(module, images, labels, smoothing):
        targets.append(labels)
        return loss_and_accuracy.uncompiled(module, images, labels, smoothing)

    monkeypatch.setattr("condkd_ray.methods.supervised.loss_and_accuracy", kept)
    labels = torch.randint(0, CLASSES, (32, *SHAPE[1:]), generator=torch.Generator().manual_seed(0))
    pixels = (labels + 1)[:, None].expand(-1, 3, -1, -1).to(torch.uint8).contiguous()
    spy = Spy()
    Supervised(epochs=1, batch=32, shift=0.25).train(
        spy, pixels, labels.to(torch.int16), **NORM, flip_ok=True, rng=Streams(0)
    )
    images, target = spy.seen[0].round().long()[:, 0], targets[0]
    assert target.dtype == torch.int64
    assert torch.equal(target, images - 1)  # black, 0, has no label
    assert (target == UNLABELLED).any()
    assert not torch.equal(target.sort(0).values, labels.sort(0).values)


def test_pixels_without_a_class_count_neither_for_the_loss_nor_for_the_accuracy():
    logits = torch.tensor([[[[4.0, 0.0, 9.0]], [[0.0, 4.0, 0.0]]]])
    labels = torch.tensor([[[0, 0, UNLABELLED]]])
    loss, accuracy = loss_and_accuracy(lambda images: logits, torch.zeros(1, 3, 1, 3), labels, 0.0)
    right, wrong = math.log1p(math.exp(-4)), math.log1p(math.exp(4))
    assert loss.item() == pytest.approx((right + wrong) / 2, rel=1e-6)
    assert accuracy.item() == 0.5


def test_equal_seeds_give_equal_weights_bit_for_bit_also_with_cutout():
    data = patches(16)
    states = []
    for seed in (0, 0, 1):
        module = network()
        recipe = Supervised(epochs=1, batch=8, cutout=0.25)
        recipe.train(module, data.pixels, data.labels, **NORM, flip_ok=True, rng=Streams(seed))
        states.append(module.state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_segmentation_teacher_must_beat_the_best_constant_prediction():
    data = patch_set(16)
    recipe = TeacherConfig(network=DeepLabResNet(width=4), training=Supervised(epochs=1, lr=1e-9, batch=8))
    expected = (
        r"^mean IoU of teacher deeplab_resnet-8-4 on 16 train images after training is 0\.\d+; accepted: more than "
        r"0\.\d+, that of the best constant prediction: a smaller teacher\.training\.lr, or more epochs$"
    )
    with pytest.raises(InputError, match=expected):
        recipe.train(recipe.build(data), data, "cpu", lambda *_: None)
    learning = replace(recipe, training=Supervised(epochs=50, batch=8))
    assert learning.train(learning.build(data), data, "cpu", lambda *_: None)


def test_a_classifier_is_no_teacher_of_pixels():
    data = patch_set(4)
    assert as_teacher(network(), data).task == "segmentation"
    with pytest.raises(InputError, match=r"^task of the teacher is 'classification'; accepted: segmentation, "):
        as_teacher(ResNet(width=4).build(SHAPE, CLASSES), data)
