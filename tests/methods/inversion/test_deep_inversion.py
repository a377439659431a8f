import pytest
import torch
import torch.nn.functional as F
from contracts.toy_methods import ConstantPenalties, RecordingGuide, make_student, small, synthesize
from reference import adversaries as reference
from toy import by_layer, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.data.augment import roll_flip
from condkd_ray.methods.inversion import DeepInversion
from condkd_ray.methods.losses.inversion import bn_distance, total_variation
from condkd_ray.methods.targets import Balanced


@pytest.mark.parametrize("best", [0, 1, 2, 3])
def test_the_images_of_the_lowest_loss_are_kept(best):
    guide = ConstantPenalties(*[-1e6 if step == best else 0.0 for step in range(4)])
    made, _ = synthesize(small(DeepInversion, steps=4), guide=guide)
    assert torch.equal(made.images, guide.penalty_calls[best])
    assert len({image.sum().item() for image in guide.penalty_calls}) == 4


def test_pixels_stay_in_the_valid_range_in_every_step():
    guide, teacher = ConstantPenalties(*[0.0] * 6), make_teacher()
    synthesize(small(DeepInversion, steps=6, lr=1.0), teacher=teacher, guide=guide)
    for images in guide.penalty_calls:
        assert images.min() >= teacher.normalise(torch.zeros(1, 1, 1, 1)).item()
        assert images.max() <= teacher.normalise(torch.ones(1, 1, 1, 1)).item()


def test_inversion_reduces_the_distance_of_bn_statistics():
    teacher = make_teacher()

    def distance(steps):
        made, _ = synthesize(small(DeepInversion, steps=steps), teacher=teacher)
        return bn_distance(teacher.observe(made.images).bn, *teacher.bn)

    assert distance(40) < 0.5 * distance(1)


def test_the_images_are_classified_as_their_target_classes():
    teacher = make_teacher()
    # So few images cannot have both the teacher's statistics and 16 given classes, so the weight of BN is small.
    made, _ = synthesize(small(DeepInversion, steps=60, bn_weight=0.3), teacher=teacher)
    assert (teacher.logits(made.images).argmax(1) == made.labels).double().mean() > 0.8


class Unused(torch.nn.Module):
    """A student that must not be called."""

    def forward(self, images):
        raise AssertionError


class RecordingStudent(torch.nn.Module):
    """A student that records its logits."""

    def __init__(self):
        super().__init__()
        self.network, self.logits = make_student(), []

    def forward(self, images):
        self.logits.append(self.network(images))
        return self.logits[-1]


class CopyingGuide(RecordingGuide):
    """A guide without a penalty that copies the images, because the pixels are optimised in place."""

    def penalty(self, images, seen, labels):
        self.penalty_calls.append((images.detach().clone(), seen, labels))
        return images.new_zeros(())


def uneven(seen, labels):
    return torch.arange(len(labels)) % 3.0


def lists(layers):
    return [(mean.tolist(), var.tolist()) for mean, var in layers]


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
@pytest.mark.parametrize("first", [1.0, 10.0])
def test_the_loss_equals_the_sum_in_plain_loops(first, reduction):
    weights = {"bn_weight": 3.0, "oh_weight": 0.7, "tv_weight": 0.01, "l2_weight": 0.02, "adv_weight": 5.0}
    method = small(DeepInversion, first_bn_factor=first, js_reduction=reduction, **weights)
    teacher, student, guide, losses = make_teacher(), RecordingStudent(), CopyingGuide(), []
    _, metrics = synthesize(method, teacher=teacher, student=student, guide=guide, weigh=uneven)
    for (images, seen, labels), ours in zip(guide.penalty_calls, student.logits, strict=True):
        weight, logits = uneven(seen, labels).tolist(), seen.logits.tolist()
        statistics = lists(by_layer(seen.bn, teacher)), lists(by_layer(teacher.bn[0], teacher))
        expected = reference.deep_inversion(
            *(logits, labels.tolist(), weight, *statistics, images.tolist()),
            **{"first": first, "bn": 3.0, "oh": 0.7, "tv": 0.01, "l2": 0.02},
        )
        losses.append(expected + 5 * reference.competition(ours.tolist(), logits, weight, 3.0, reduction))
    assert metrics["inversion/loss"] == pytest.approx(reference.mean(losses), rel=1e-4)


def test_without_competition_the_images_equal_deep_inversion_bit_for_bit():
    method, teacher, rng = small(DeepInversion, steps=4), make_teacher(), Streams(0)
    made, metrics = synthesize(method, teacher=teacher, student=Unused())
    labels = Balanced().sample(method.batch, teacher, rng=rng).labels
    low, high = (teacher.normalise(torch.full((1, 1, 1, 1), pixel)) for pixel in (0.0, 1.0))
    images = torch.randn(method.batch, *teacher.image_shape, generator=rng["latents"])
    images = images.maximum(low).minimum(high).to(memory_format=torch.channels_last).requires_grad_()
    optimizer, lowest, best = torch.optim.Adam([images], method.lr, betas=(0.5, 0.9), fused=True), float("inf"), images
    for _ in range(4):
        seen = teacher.observe(roll_flip(images, rng=rng["augment/inversion"], share=1 / 8, flip=False))
        bn, oh = bn_distance(seen.bn, *teacher.bn), F.cross_entropy(seen.logits, labels, reduction="none")
        loss = method.bn_weight * bn + method.oh_weight * oh.mean() + method.tv_weight * total_variation(images)
        if loss < lowest:
            lowest, best = loss.item(), images.detach().clone()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            images.copy_(images.maximum(low).minimum(high))
    assert torch.equal(made.images, best)
    assert metrics["inversion/adv"] == 0


def test_competition_increases_the_disagreement_of_teacher_and_student():
    teacher, student, apart = make_teacher(), make_student(), []
    for weight in (0.0, 30.0):
        made, _ = synthesize(small(DeepInversion, steps=30, adv_weight=weight), teacher=teacher, student=student)
        outputs = (student(made.images).tolist(), teacher.logits(made.images).tolist(), [1.0] * len(made))
        apart.append(1 - reference.competition(*outputs, 3.0, "batchmean"))
    assert apart[1] > apart[0]


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"temperature": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        DeepInversion(**change)
