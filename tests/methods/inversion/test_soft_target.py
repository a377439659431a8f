import pytest
import torch
from contracts.toy_methods import ConstantPenalties, make_student, small
from reference.inversion import soft_target
from toy import MEAN, NUM_CLASSES, STD, make_teacher

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.guidance import Unguided
from condkd_ray.methods.inversion import SoftTarget
from condkd_ray.methods.targets import Balanced, Soft, Targets
from condkd_ray.methods.weighing import equal_weights
from condkd_ray.models import LeNet5
from condkd_ray.models.teacher import Teacher


def lenet():
    """Return a teacher without BN."""
    with Streams(0).forked("init/teacher"):
        module = LeNet5().build((1, 16, 16), NUM_CLASSES)
    return Teacher.from_module(module, num_classes=NUM_CLASSES, image_shape=(1, 16, 16), mean=MEAN, std=STD)


def run(inversion, teacher, targets, guide=None, weigh=equal_weights, seed=0):
    rng = Streams(seed)
    inversion.init(teacher, rng)
    return inversion.synthesize(
        None, targets, teacher=teacher, student=make_student(), guide=guide or Unguided(), weigh=weigh, rng=rng
    )


class Recorder(Unguided):
    """A guide without a penalty that records the images and the teacher's observations of them."""

    def __init__(self):
        self.images, self.observations = [], []

    def penalty(self, images, seen, labels):
        self.images.append(images)
        self.observations.append(seen.detach())
        return super().penalty(images, seen, labels)


@pytest.mark.parametrize("teacher", [make_teacher(), lenet()], ids=["resnet", "lenet"])
@pytest.mark.parametrize("source", [Soft(sigma=9.0, temperature=5.0), Balanced()], ids=["soft", "labels"])
def test_the_loss_equals_the_reference(teacher, source):
    method, guide = small(SoftTarget, steps=1, oh_weight=0.7, act_weight=0.3), Recorder()
    targets = source.sample(method.images_per_round, teacher, rng=Streams(0))
    _, metrics = run(method, teacher, targets, guide)
    soft = torch.eye(NUM_CLASSES)[targets.labels] if targets.soft is None else targets.soft
    wanted = soft_target(
        guide.observations[0].logits.double().tolist(),
        guide.observations[0].features.double().tolist(),
        soft.double().tolist(),
        temperature=targets.temperature,
        oh_weight=0.7,
        act_weight=0.3,
    )
    assert metrics["inversion/loss"] == pytest.approx(wanted, rel=1e-5)


def test_the_teacher_observes_the_optimised_images_themselves():
    method, guide, teacher = small(SoftTarget, steps=20, shift=0.25), Recorder(), lenet()
    made, _ = run(method, teacher, Soft().sample(16, teacher, rng=Streams(0)), guide)
    leaf = guide.images[0]
    assert leaf.is_leaf
    assert all(images is leaf for images in guide.images)
    # After the last step the images have other pixel values than after the first, not only shifted ones.
    still, _ = run(small(SoftTarget, steps=1), teacher, Soft().sample(16, teacher, rng=Streams(0)))
    assert not torch.equal(made.images.flatten().sort().values, still.images.flatten().sort().values)


@pytest.mark.parametrize(("teacher", "temperature"), [(make_teacher(), 1.0), (lenet(), 0.02)], ids=["resnet", "lenet"])
def test_the_teachers_soft_outputs_approach_the_targets(teacher, temperature):
    # The targets are its outputs for other images. A low temperature makes those of an untrained teacher differ.
    others = torch.randn(16, *teacher.image_shape, generator=torch.Generator().manual_seed(1))
    soft = torch.softmax(teacher.logits(others) / temperature, 1)
    targets = Targets(soft.argmax(1), soft, temperature)

    def distance(steps):
        made, _ = run(small(SoftTarget, steps=steps, act_weight=0.0, shift=0.0), teacher, targets)
        return (torch.softmax(teacher.logits(made.images) / temperature, 1) - soft).abs().sum(1).mean().item()

    assert distance(60) < 0.2 * distance(1)


def test_the_targets_of_a_round_are_drawn_once():
    teacher, rng = lenet(), Streams(0)
    targets = Soft().sample(16, teacher, rng=rng)
    before = rng.state_dict()["device"]["targets"].clone()
    method = small(SoftTarget, steps=5)
    method.synthesize(
        None, targets, teacher=teacher, student=make_student(), guide=Unguided(), weigh=equal_weights, rng=rng
    )
    assert torch.equal(rng.state_dict()["device"]["targets"], before)


def test_sample_weights_apply_only_to_the_cross_entropy():
    teacher = lenet()
    targets = Soft().sample(16, teacher, rng=Streams(0))
    plain, twice = (
        run(small(SoftTarget, steps=1), teacher, targets, weigh=lambda seen, labels, f=f: f * torch.ones(16))[1]
        for f in (1.0, 2.0)
    )
    assert twice["inversion/oh"] == pytest.approx(2 * plain["inversion/oh"], rel=1e-6)
    assert twice["inversion/act"] == plain["inversion/act"]


@pytest.mark.parametrize("best", [0, 2])
def test_the_images_of_the_lowest_loss_are_kept(best):
    guide, teacher = ConstantPenalties(*[-1e6 if step == best else 0.0 for step in range(3)]), lenet()
    made, _ = run(small(SoftTarget), teacher, Balanced().sample(16, teacher, rng=Streams(0)), guide)
    assert torch.equal(made.images, guide.penalty_calls[best])


def test_pixels_stay_in_the_valid_range_in_every_step():
    guide, teacher = ConstantPenalties(*[0.0] * 6), lenet()
    run(small(SoftTarget, steps=6, lr=1.0), teacher, Balanced().sample(16, teacher, rng=Streams(0)), guide)
    darkest, brightest = ((v - MEAN[0]) / STD[0] for v in (0.0, 1.0))
    assert min(images.min().item() for images in guide.penalty_calls) >= darkest
    assert max(images.max().item() for images in guide.penalty_calls) <= brightest


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"lr": 0.0}])
def test_invalid_settings_are_refused(change):
    with pytest.raises(InputError, match="accepted"):
        SoftTarget(**change)
