import math

import pytest
import torch
from reference import adversaries
from reference import losses as reference
from toy import blobs, make_teacher, samples

from condkd_ray.methods.losses.inversion import (
    bn_distance,
    class_prior,
    entropy,
    mix_bn,
    negative_activation,
    negative_entropy,
    total_variation,
)
from condkd_ray.models.teacher import Teacher

RNG = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=RNG, dtype=torch.float64)


LOGITS, LABELS = 3 * normal(9, 5), torch.randint(5, (9,), generator=RNG)
IMAGES = normal(3, 2, 5, 4)
SEEN, RUNNING = (torch.stack([normal(10), normal(10).abs()]) for _ in range(2))
SIZES = [3, 7]
LAYERS = torch.block_diag(*(torch.ones(1, size, dtype=torch.float64) for size in SIZES))


def lists(bn):
    """Return (means, variances) of each layer."""
    return [(mean.tolist(), var.tolist()) for mean, var in zip(*(row.split(SIZES) for row in bn), strict=True)]


def close(got, wanted):
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_class_prior_equals_the_plain_loop():
    close(class_prior(LOGITS, LABELS), reference.class_prior(LOGITS.tolist(), LABELS.tolist()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_class_prior_of_labels_at_a_temperature(temperature):
    found = class_prior(LOGITS, LABELS, temperature)
    close(found, reference.class_prior(LOGITS.tolist(), LABELS.tolist(), temperature))


def test_a_class_prior_saturates_at_temperature_1_and_not_at_a_higher_one():
    """With a logit 20 above the others, the gradient is (softmax(f / T) - onehot) / T."""
    pulls = {}
    for temperature in (1.0, 8.0):
        logits = (20 * torch.nn.functional.one_hot(LABELS, 5)).double().requires_grad_()
        (gradient,) = torch.autograd.grad(class_prior(logits, LABELS, temperature).sum(), logits)
        others = math.exp(-20 / temperature)
        by_hand = (1 / (1 + 4 * others) - 1) / temperature
        pulls[temperature] = gradient.gather(1, LABELS[:, None])
        torch.testing.assert_close(pulls[temperature], torch.full_like(pulls[temperature], by_hand))
    assert (pulls[8.0].abs() > 1e6 * pulls[1.0].abs()).all()


def test_class_prior_of_soft_targets_at_a_temperature():
    wanted = torch.softmax(LOGITS.flip(0) / 3, 1)
    expected = [
        -sum(p * math.log(q) for p, q in zip(row, torch.softmax(logits / 3, 0).tolist(), strict=True))
        for row, logits in zip(wanted.tolist(), LOGITS, strict=True)
    ]
    close(class_prior(LOGITS, wanted, 3.0), expected)
    hot = torch.nn.functional.one_hot(LABELS, LOGITS.shape[1]).to(LOGITS.dtype)
    close(class_prior(LOGITS, hot), class_prior(LOGITS, LABELS).tolist())


def test_bn_distance_equals_the_plain_loop():
    close(bn_distance(SEEN, RUNNING, LAYERS), reference.bn_distance(lists(SEEN), lists(RUNNING)))


def test_the_first_bn_layer_can_have_a_larger_weight():
    wanted = adversaries.first_counting(5, lists(SEEN), lists(RUNNING))
    close(bn_distance(SEEN, RUNNING, LAYERS, 5), wanted)
    assert torch.equal(bn_distance(SEEN, RUNNING, LAYERS, 1), bn_distance(SEEN, RUNNING, LAYERS))


def test_entropy_of_each_image():
    close(entropy(LOGITS), adversaries.entropies(LOGITS.tolist()))
    close(entropy(torch.zeros(2, 100, dtype=torch.float64)), [2.0, 2.0])
    close(entropy(torch.tensor([[1e4, 0.0, 0.0]], dtype=torch.float64)), [0.0])


def test_matching_statistics_are_at_distance_0_with_a_finite_gradient():
    seen = RUNNING.clone().requires_grad_()
    distance = bn_distance(seen, RUNNING, LAYERS)
    distance.backward()
    assert distance == 0
    assert seen.grad.isfinite().all()


def test_observed_statistics_are_means_and_biased_variances_of_the_layers_input():
    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = torch.nn.BatchNorm2d(2)
            self.fc = torch.nn.Linear(2, 3)

        def forward(self, images):
            return self.fc(self.bn(images).mean((2, 3)))

    teacher = Teacher(
        First(), num_classes=3, image_shape=(2, 5, 4), mean=(0, 0), std=(1, 1), train_size=1, flip_ok=False
    )
    found = teacher.observe(IMAGES.float()).bn
    wanted = reference.batch_statistics(IMAGES.tolist())
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_mixed_statistics_equal_the_plain_loop(momentum):
    mixed = mix_bn(SEEN, RUNNING, momentum)
    wanted = reference.mix_bn(lists(SEEN), lists(RUNNING), momentum)
    close(mixed, [[value for layer in wanted for value in layer[row]] for row in (0, 1)])


def test_without_a_memory_the_statistics_are_those_of_the_batch():
    assert mix_bn(SEEN, None, 0.9) is SEEN


def test_negative_entropy_equals_the_plain_loop():
    close(negative_entropy(LOGITS), reference.negative_entropy(LOGITS.tolist()))


def test_entropy_is_lowest_for_evenly_used_classes_however_certain_each_image():
    certain = 1000 * torch.eye(10, dtype=torch.float64)
    assert negative_entropy(certain).item() == pytest.approx(-1.0)
    assert negative_entropy(certain[:1].repeat(10, 1)).item() == pytest.approx(0.0, abs=1e-9)


def test_negative_activation_equals_the_plain_loop():
    close(negative_activation(LOGITS), reference.negative_activation(LOGITS.tolist()))


def test_total_variation_equals_the_plain_loop():
    close(total_variation(IMAGES), reference.total_variation(IMAGES.tolist()))


def test_a_constant_image_has_no_variation_and_a_finite_gradient():
    images = torch.full((2, 3, 4, 4), 0.7, requires_grad=True)
    variation = total_variation(images)
    variation.backward()
    assert variation.item() == pytest.approx(0.0, abs=1e-5)
    assert (images.grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "at"),
    [
        (lambda x: class_prior(x, LABELS), LOGITS),
        (lambda x: class_prior(x, LABELS, 8.0), LOGITS),
        (negative_entropy, LOGITS),
        (negative_activation, LOGITS),
        (total_variation, IMAGES),
        (lambda x: bn_distance(mix_bn(x, RUNNING, 0.9), SEEN, LAYERS), RUNNING + 1),
    ],
    ids=["class_prior", "tempered", "negative_entropy", "negative_activation", "total_variation", "bn"],
)
def test_gradients_equal_finite_differences(loss, at):
    assert torch.autograd.gradcheck(loss, (at.clone().requires_grad_(),))


@pytest.mark.parametrize(
    "term",
    [
        lambda seen, images: bn_distance(seen.bn, *make_teacher().bn),
        lambda seen, images: class_prior(seen.logits, blobs(8).labels).mean(),
        lambda seen, images: negative_entropy(seen.logits),
        lambda seen, images: negative_activation(seen.features),
        lambda seen, images: total_variation(images),
    ],
    ids=["bn", "class_prior", "negative_entropy", "negative_activation", "total_variation"],
)
def test_every_term_has_a_gradient_to_every_image_through_the_teacher(term):
    images = samples(8).images.requires_grad_()
    (gradient,) = torch.autograd.grad(term(make_teacher().observe(images), images), images)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
