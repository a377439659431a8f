from math import sqrt
from typing import Any

import pytest
import torch
from reference import kd
from toy import IMAGE_SHAPE, NUM_CLASSES, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.methods.losses.kd import Attention, Hinton, NetworkOutputs
from condkd_ray.models import ConvNet

RNG = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 4 * torch.randn(2, 6, 5, generator=RNG)
LABELS = torch.arange(6) % 5
SHALLOW, DEEP = torch.randn(6, 3, 4, 4, generator=RNG), torch.randn(6, 2, 2, 2, generator=RNG)
WIDE_SHALLOW, WIDE_DEEP = torch.randn(6, 5, 4, 4, generator=RNG), torch.randn(6, 7, 2, 2, generator=RNG)
TWO: dict[str, Any] = {"teacher_layers": ("a", "b"), "student_layers": ("c", "d")}
ONE: dict[str, Any] = {"teacher_layers": ("a",), "student_layers": ("c",)}


def close(got, wanted):
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tau", "weight"), [(1.0, 250.0), (4.0, 1.0)])
def test_attention_equals_the_plain_loop(tau, weight):
    loss = Attention(**TWO, temperature=tau, weight=weight)
    got = loss(NetworkOutputs(STUDENT, (SHALLOW, DEEP)), NetworkOutputs(TEACHER, (WIDE_SHALLOW, WIDE_DEEP)), LABELS)
    pairs = [(SHALLOW.tolist(), WIDE_SHALLOW.tolist()), (DEEP.tolist(), WIDE_DEEP.tolist())]
    close(got, kd.attention(STUDENT.tolist(), TEACHER.tolist(), tau, weight, pairs))


def test_attention_at_opposite_corners_by_hand():
    ours, wanted = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    ours[0, 0, 0, 0], wanted[0, :, 1, 1] = 5.0, 2.0
    logits = torch.zeros(1, 5)
    loss = Attention(**ONE, weight=1.0)
    assert loss(NetworkOutputs(logits, (ours,)), NetworkOutputs(logits, (wanted,)), LABELS[:1]).item() == pytest.approx(
        2 / 4
    )
    both = ours + ours.flip(2, 3)
    by_hand = ((1 / sqrt(2) - 1) ** 2 + 0.5) / 4
    got = loss(NetworkOutputs(logits, (both,)), NetworkOutputs(logits, (wanted,)), LABELS[:1])
    assert got.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_the_larger_map_is_averaged_down(larger):
    small, large = DEEP, SHALLOW
    ours, wanted = (large, small) if larger == "student" else (small, large)
    got = Attention(**ONE, weight=1.0)(NetworkOutputs(STUDENT, (ours,)), NetworkOutputs(STUDENT, (wanted,)), LABELS)
    distances = []
    for one, other in zip(small.tolist(), large.tolist(), strict=True):
        distances.append(kd.attention_distance(kd.energy(one), kd.halved(kd.energy(other))))
    close(got, distances)


def test_attention_does_not_depend_on_scale_and_number_of_channels():
    same = torch.cat([3 * SHALLOW, 3 * SHALLOW], 1)
    got = Attention(**ONE)(NetworkOutputs(STUDENT, (same,)), NetworkOutputs(STUDENT, (SHALLOW,)), LABELS)
    assert got.abs().max() <= 1e-4


def test_with_weight_0_attention_equals_hinton():
    loss = Attention(**ONE, weight=0.0, temperature=4.0)
    got = loss(NetworkOutputs(STUDENT, (SHALLOW,)), NetworkOutputs(TEACHER, (WIDE_SHALLOW,)), LABELS)
    assert torch.equal(got, Hinton(temperature=4.0)(NetworkOutputs(STUDENT), NetworkOutputs(TEACHER), LABELS))


def test_a_layer_of_zeros_has_a_finite_gradient():
    dead = torch.zeros(6, 3, 4, 4, requires_grad=True)
    Attention(**ONE)(
        NetworkOutputs(STUDENT, (dead,)), NetworkOutputs(TEACHER, (WIDE_SHALLOW,)), LABELS
    ).sum().backward()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()


def test_layers_of_any_two_networks_are_accepted_if_they_have_a_map():
    student = ConvNet(depth=2, width=4).build(IMAGE_SHAPE, NUM_CLASSES)
    maps = [name for name, part in student.named_modules() if isinstance(part, torch.nn.Conv2d)]
    Attention(teacher_layers=("stages.0", "stages.1"), student_layers=tuple(maps)).check(student, make_teacher())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"teacher_layers": ("stage.0",)},
            "attention teacher_layers is 'stage.0'; accepted: conv, bn, stages, stages.0, ",
        ),
        (
            {"student_layers": ("stage.0",)},
            "attention student_layers is 'stage.0'; accepted: conv, bn, stages, stages.0, ",
        ),
        ({"student_layers": ("classifier",)}, "attention student_layers is 'classifier'; accepted: conv, "),
        ({"teacher_layers": ("penultimate",)}, "attention teacher_layers is 'penultimate'; accepted: conv, "),
    ],
)
def test_layers_without_a_map_are_refused_with_a_list_of_the_others(fields, message):
    teacher = make_teacher()
    loss = Attention(**{"teacher_layers": ("stages.1",), "student_layers": ("stages.1",)} | fields)
    with pytest.raises(InputError) as caught:
        loss.check(make_teacher().network, teacher)
    assert str(caught.value).startswith(message)
    assert "classifier" not in str(caught.value).partition("accepted")[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"teacher_layers": (), "student_layers": ()},
            r"attention teacher_layers is \(\); accepted: one or more",
        ),
        (
            {"student_layers": ()},
            "number of attention student_layers is 0; accepted: 1, one for each of",
        ),
        ({"weight": -1.0}, "attention weight is -1.0; accepted: >= 0"),
        ({"temperature": 0.0}, "temperature is 0.0; accepted: > 0"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Attention(**ONE | fields)
