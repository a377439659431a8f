"""The check that a user's segmentation teacher recognises the pixels: what is refused, and what is logged."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from patches import network, patch_set, trained_weights
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.methods.recognition import best_order
from condkd_ray.methods.supervised import as_teacher
from condkd_ray.models.teacher import Teacher
from condkd_ray.trial import known_teacher
from condkd_ray.trial.given_teacher import GivenTeacher
from condkd_ray.trial.known_teacher import check_known, examine_pixels

DATA = patch_set()
PLAIN = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@cache
def _weights() -> dict[str, torch.Tensor]:
    return trained_weights(DATA)


def teacher(**changes: object) -> Teacher:
    module = network()
    module.load_state_dict(_weights())
    return as_teacher(module, replace(DATA, **changes))  # type: ignore[arg-type]


def test_a_teacher_that_recognises_the_pixels_is_described_in_one_sentence():
    sentence = check_known(teacher(), DATA, force=False)
    assert examine_pixels(teacher(), DATA).found > 0.9
    assert sentence.startswith("the teacher segments 48 images of patches with a mean IoU of ")
    assert "(best constant: 0." in sentence
    assert "it would be" not in sentence


def test_a_teacher_that_was_never_trained_is_refused_with_its_bn_as_the_cause():
    fresh = as_teacher(network(), DATA)
    with pytest.raises(InputError, match=r"^teacher's mean IoU on 48 images of patches is 0\.\d+; accepted: more "):
        check_known(fresh, DATA, force=False)
    text = check_known(fresh, DATA, force=True)
    assert text.startswith("taken by force: teacher's mean IoU")
    assert "BN layers have untrained statistics" in text
    assert "--force-teacher" not in text


def test_a_teacher_that_returns_probabilities_is_refused_unless_forced():
    softened = as_teacher(nn.Sequential(teacher().network, nn.Softmax(1)), DATA)
    wanted = (
        r"^teacher's outputs for 48 images of patches are probabilities, from \S+ to (0\.99\d*|1) with sums over the "
        r"classes from 1\.0000 to 1\.0000; accepted: logits: return the values before the softmax; or --force-teacher"
    )
    with pytest.raises(InputError, match=wanted):
        check_known(softened, DATA, force=False)
    text = check_known(softened, DATA, force=True)
    assert text.startswith("taken by force: teacher's outputs for 48 images of patches are probabilities")
    assert "--force-teacher" not in text
    assert not softened.network._forward_hooks


def test_log_probabilities_are_logits():
    logarithms = as_teacher(nn.Sequential(teacher().network, nn.LogSoftmax(1)), DATA)
    assert check_known(logarithms, DATA, force=False).startswith("the teacher segments 48 images")


def test_outputs_that_sum_to_1_at_some_pixels_only_are_logits():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = teacher().network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            probabilities = self.network(images).softmax(1)
            probabilities[:, :, 0, 0] /= 2
            return probabilities

    assert check_known(as_teacher(Halved(), DATA), DATA, force=False).startswith("the teacher segments 48 images")


@pytest.mark.parametrize("in_python", [False, True])
def test_another_normalisation_is_named(in_python):
    findings = examine_pixels(teacher(**PLAIN), DATA, in_python=in_python)
    assert findings.refused
    assert findings.better == (DATA.mean, DATA.std)
    wanted = "Teacher.from_module it would be " if in_python else "(data.mean, data.std) it would be "
    assert wanted in findings.message
    assert "order of the classes" not in findings.message


def test_another_order_of_the_classes_is_named():
    wrong = teacher().in_order([2, 0, 1])
    with pytest.raises(InputError, match=r"--class-order red blue ground \(teacher\.class_order\)") as error:
        check_known(wrong, DATA, force=False)
    assert "in another order of the classes it would be " in str(error.value)
    findings = examine_pixels(wrong, DATA, in_python=True)
    assert f"teacher.in_order({list(findings.order)})" in findings.message
    assert not examine_pixels(wrong.in_order(findings.order), DATA).refused


def test_the_names_are_in_the_order_of_the_networks_own_outputs():
    # The user has given the order of outputs 2, 0, 1 although it is 0, 1, 2.
    findings = examine_pixels(teacher().in_order([2, 0, 1]), DATA, order=[2, 0, 1])
    assert "--class-order ground red blue" in findings.message


def test_a_card_that_states_a_far_higher_mean_iou_is_contradicted():
    assert "its card states 0.990" in check_known(teacher(), DATA, force=False, stated=0.99)
    weak = examine_pixels(as_teacher(network(), DATA), DATA, stated=0.9)
    assert weak.refused
    assert "and near the 0.900 that its card states" in weak.message


@pytest.mark.parametrize(
    ("found", "shown"),
    [(0.12851, "0.12851; accepted: more than 0.12854, "), (0.12854, "0.129, not more; accepted: mo")],
)
def test_a_mean_iou_just_below_that_of_a_constant_is_told_apart_from_it(found, shown):
    findings = replace(examine_pixels(as_teacher(network(), DATA), DATA), found=found, least=0.12854)
    assert findings.refused
    assert f" is {shown}" in findings.message


def test_few_images_are_read_by_a_large_network(monkeypatch):
    monkeypatch.setattr(known_teacher, "AFFORDABLE", 1.0)
    assert examine_pixels(teacher(), DATA).what == "20 images of patches"


def test_the_best_order_is_that_of_the_highest_mean_iou():
    counts = torch.tensor([[0, 8, 2], [1, 1, 8], [9, 0, 1]])
    order, iou = best_order(counts)
    assert order == (2, 0, 1)
    assert iou == pytest.approx((8 / (10 + 9 - 8) + 8 / (10 + 11 - 8) + 9 / (10 + 10 - 9)) / 3)
    assert best_order(torch.eye(3, dtype=torch.int64) * 5) == ((0, 1, 2), 1.0)


def test_a_given_teacher_must_have_the_task_of_the_images():
    given = GivenTeacher(teacher())
    given.check_images(DATA)
    other = replace(DATA, task="classification")
    with pytest.raises(InputError, match=r"^task of the teacher is 'segmentation'; accepted: classification, that of"):
        given.check_images(other)
