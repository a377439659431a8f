import pytest
import torch
from torch import nn

from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance.discriminator import FeatureDiscriminator

RNG = torch.Generator().manual_seed(0)
FORMS = ("auxiliary", "projection", "per_class", "none")
FEATURES, LABELS = torch.randn(10, 16, generator=RNG), torch.arange(10) % 5

each_condition = pytest.mark.parametrize("condition", FORMS)


def discriminator(condition="auxiliary", *, spectral=True):
    with Streams(0).forked("init/guide"):
        return FeatureDiscriminator(16, 5, hidden=(32, 8), spectral=spectral, condition=condition)


@each_condition
@pytest.mark.parametrize("spectral", [True, False])
def test_outputs_are_a_logit_and_class_logits_if_there_is_a_class_head(condition, spectral):
    logits, classes = discriminator(condition, spectral=spectral)(FEATURES, LABELS)
    assert logits.shape == (10,)
    assert logits.isfinite().all()
    assert (classes is not None) == (condition == "auxiliary")
    assert classes is None or classes.shape == (10, 5)


@each_condition
@pytest.mark.parametrize("spectral", [True, False])
def test_logits_of_an_untrained_discriminator_are_small(condition, spectral):
    logits, _ = discriminator(condition, spectral=spectral)(FEATURES, LABELS)
    assert logits.abs().max() < 1


@pytest.mark.parametrize(
    ("condition", "conditional"), [("auxiliary", False), ("projection", True), ("per_class", True), ("none", False)]
)
def test_the_logit_depends_on_the_label_only_in_conditional_forms(condition, conditional):
    network = discriminator(condition, spectral=False)
    logits = [network(FEATURES, labels)[0] for labels in (LABELS, (LABELS + 1) % 5)]
    assert (logits[0] != logits[1]).all() == conditional
    assert torch.equal(*logits) != conditional


def layers(network):
    """Return the output of the hidden layers for the features."""
    first, second = network.trunk[0], network.trunk[2]
    return nn.functional.leaky_relu(second(nn.functional.leaky_relu(first(FEATURES), 0.2)), 0.2)


def test_projection_adds_the_inner_product_of_hidden_layer_and_the_labels_embedding():
    network = discriminator("projection", spectral=False)
    hidden, embedding = layers(network).tolist(), network.embedding.weight.tolist()
    weight, bias = network.adversarial.weight[0].tolist(), network.adversarial.bias.item()
    wanted = []
    for x, label in zip(hidden, LABELS.tolist(), strict=True):
        total = bias
        for value, plain, projected in zip(x, weight, embedding[label], strict=True):
            total += value * (plain + projected)
        wanted.append(total)
    torch.testing.assert_close(network(FEATURES, LABELS)[0], torch.tensor(wanted))


def test_per_class_takes_the_logit_of_the_label():
    network = discriminator("per_class", spectral=False)
    hidden = layers(network).tolist()
    weights, biases = network.adversarial.weight.tolist(), network.adversarial.bias.tolist()
    wanted = []
    for x, label in zip(hidden, LABELS.tolist(), strict=True):
        total = biases[label]
        for value, weight in zip(x, weights[label], strict=True):
            total += value * weight
        wanted.append(total)
    torch.testing.assert_close(network(FEATURES, LABELS)[0], torch.tensor(wanted))


@each_condition
@pytest.mark.parametrize("spectral", [True, False])
def test_spectral_normalisation_bounds_the_slope_of_the_logit(condition, spectral):
    network = discriminator(condition, spectral=spectral)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                weight = layer.parametrizations.weight.original if spectral else layer.weight
                weight.mul_(20)
        for _ in range(200):
            network(torch.zeros(2, 16), LABELS[:2])
        x, y = torch.randn(2, 500, 16, generator=RNG)
        labels = torch.zeros(500, dtype=torch.int64)
        change = (network(x, labels)[0] - network(y, labels)[0]).abs() / (x - y).norm(dim=1)
    # A projection is the sum of two such heads.
    bound = 2 if condition == "projection" else 1
    assert (change.max() <= 1.001 * bound) == spectral


@each_condition
def test_logits_are_float32_under_autocast(condition):
    with torch.autocast("cpu", torch.bfloat16):
        logits, classes = discriminator(condition)(FEATURES, LABELS)
    assert logits.dtype == torch.float32
    assert classes is None or classes.dtype == torch.float32
