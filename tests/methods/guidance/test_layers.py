"""The layers that guidances compare, their units, and the perturbation of condensed features."""

from dataclasses import replace

import pytest
import torch
from contracts.toy_guides import LABELS, bound, fakes, step
from contracts.toy_methods import INVERTERS, small
from reference import losses as reference
from toy import MEAN, NUM_CLASSES, STD, blobs, make_teacher, wrap

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.methods.guidance import Discriminator, Gaussian, Mmd, Moments
from condkd_ray.methods.guidance.guidance import Layout, same_class_rows, spread

RNG = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(12, 6, generator=RNG), torch.randn(12, 6, generator=RNG) + 1
PLACES = torch.arange(12) % 3
LAYOUT = Layout((3, 2, 1))


def condensed_set(ipc=2):
    return blobs(ipc * NUM_CLASSES, seed=4).samples(MEAN, STD)


def by_hand(features, labels):
    """Return the spread of a layer, computed in loops."""
    apart, freedom = 0.0, 0
    for label in set(labels.tolist()):
        rows = features[labels == label].double()
        apart += (rows - rows.mean(0)).square().sum().item()
        freedom += len(rows) - 1
    if not freedom:
        return (features.double() - features.double().mean(0)).square().sum().div(len(features) - 1).sqrt().item()
    return (apart / freedom) ** 0.5


@pytest.mark.parametrize("labels", [PLACES, torch.arange(12), torch.tensor([0, 1, 1, *range(2, 11)])], ids=str)
def test_the_spread_is_around_class_means_or_around_the_common_mean_if_no_class_has_two_images(labels):
    assert spread(RIGHT, labels, 12).item() == pytest.approx(by_hand(RIGHT, labels), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_the_spread_counts_equal_images_once_and_is_1_for_a_constant_layer(value):
    assert spread(torch.full((6, 3), value), torch.arange(6) % 3, 3) == 1
    twice = RIGHT[:3].repeat(2, 1)
    wanted = (twice - twice.mean(0)).square().sum().div(5).sqrt().item()
    assert spread(twice, torch.arange(6) % 3, 3).item() == pytest.approx(wanted, rel=1e-5)


def test_several_layers_are_concatenated_each_in_units_of_its_spread():
    teacher, few = make_teacher(), condensed_set()
    guide, carried = bound(Mmd(stages=2), teacher=teacher)
    seen = teacher.observe(few.images, ("stages.0", "stages.1"))
    layers = [seen.features, seen.taps["stages.0"].mean((2, 3)), seen.taps["stages.1"].mean((2, 3))]
    wanted = torch.cat([layer / by_hand(layer, few.labels) for layer in layers], 1)
    torch.testing.assert_close(carried.features, wanted, rtol=1e-4, atol=1e-5)
    assert guide.layers == ("stages.0", "stages.1")
    assert carried.layout == Layout((16, 4, 8))
    step(guide, fakes(), teacher)
    assert carried.features.shape == (len(LABELS), 28)


def test_a_named_layer_comes_first_and_the_stages_after_it():
    teacher, few = make_teacher(), condensed_set()
    guide, carried = bound(Mmd(layer="conv", stages=1), teacher=teacher)
    assert guide.layers == ("conv", "stages.1")
    seen = teacher.observe(few.images, guide.layers)
    layers = [seen.taps[name].mean((2, 3)) for name in guide.layers]
    wanted = torch.cat([layer / by_hand(layer, few.labels) for layer in layers], 1)
    torch.testing.assert_close(carried.features, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alignment", ["class", "marginal"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_mmd_sums_over_layers_each_with_its_own_bandwidth(alignment, weight):
    guidance = Mmd(stages=2, stages_weight=weight, alignment=alignment)
    state = guidance.init(make_teacher(), RIGHT, PLACES, Streams(0), LAYOUT)
    of, wanted = {"class": reference.class_mmd, "marginal": reference.marginal_mmd}[alignment], 0.0
    for factor, x, y in zip((1, weight, weight), LAYOUT.split(LEFT), LAYOUT.split(RIGHT), strict=True):
        median = reference.median_distance(y.tolist())
        wanted += factor * of(x.tolist(), PLACES.tolist(), y.tolist(), PLACES.tolist(), median)
    assert guidance.penalty(state, LEFT, PLACES, rng=RNG).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("alignment", ["class", "marginal"])
@pytest.mark.parametrize("stage_covariances", [False, True])
def test_moments_sum_over_layers(alignment, stage_covariances):
    guidance = Moments(stages=2, stages_weight=0.5, alignment=alignment, stage_covariances=stage_covariances)
    state = guidance.init(make_teacher(), RIGHT, PLACES, Streams(0), LAYOUT)
    of = {"class": reference.class_moments, "marginal": reference.marginal_moments}[alignment]
    wanted, sides = 0.0, zip(LAYOUT.split(state.scale * LEFT), LAYOUT.split(state.scale * RIGHT), strict=True)
    for place, (x, y) in enumerate(sides):
        mean, covariance = of(x.tolist(), PLACES.tolist(), y.tolist(), PLACES.tolist())
        wanted += (0.5 if place else 1) * (mean + (covariance if stage_covariances or not place else 0))
    assert guidance.penalty(state, LEFT, PLACES, rng=RNG).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_discriminator_reads_all_layers_with_stages_scaled_by_their_weight(weight):
    guidance = Discriminator(hidden=8, stages=2, stages_weight=weight)
    state = guidance.init(make_teacher(), RIGHT, PLACES, Streams(0), LAYOUT)
    once = RIGHT.square().mean().rsqrt()
    torch.testing.assert_close(state.scale, once * torch.tensor([1.0] * 3 + [weight**0.5] * 3))
    features = LEFT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(guidance.penalty(state, features, PLACES, rng=RNG), [features])
    assert (gradient[:, 3:] == 0).all() == (weight == 0)


@pytest.mark.parametrize("augment", ["host", "condensed"])
def test_held_out_images_are_evaluated_on_all_layers(augment):
    teacher = make_teacher()
    guidance = Discriminator(hidden=8, stages=2, augment=augment, held_out=0.5)
    guide, _ = bound(guidance, teacher=teacher)
    step(guide, fakes(), teacher)
    assert {"guidance/perfect_accuracy", "guidance/held_out_accuracy"} <= guidance.read(guide).keys()


class Bare(torch.nn.Module):
    """A user's network without named stages."""

    def __init__(self, pools=2):
        super().__init__()
        layers = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU()]
        for _ in range(pools):
            layers += [torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU(inplace=True)]
        self.trunk, self.last = torch.nn.Sequential(*layers), torch.nn.Linear(4, NUM_CLASSES)

    def forward(self, images):
        return self.last(self.trunk(images).mean((2, 3)))


class Flat(torch.nn.Module):
    """A network without feature maps."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 8), torch.nn.Linear(8, NUM_CLASSES)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


def test_stages_of_a_users_network_end_where_maps_shrink_and_do_not_repeat_the_features():
    teacher = wrap(Bare())
    assert teacher.stage_outputs == ("trunk.1", "trunk.4")
    guide, _ = bound(Moments(stages=2), teacher=teacher)
    assert guide.layers == ("trunk.1", "trunk.4")
    assert (step(guide, fakes(), teacher)[1].flatten(1).abs().amax(1) > 0).all()
    assert wrap(Flat()).stage_outputs == ()


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (None, {"stages": 3}, "guidance stages is 3; accepted: 0 to 2; .* this teacher has stages.0, stages.1"),
        (Flat, {"stages": 1}, "guidance stages is 1; accepted: 0 to 0; .* this teacher has none"),
        (None, {"stages": 1, "layer": "stages.1"}, "guidance layer with stages 1 is 'stages.1'; accepted: penultimate"),
        (None, {"layer": "nowhere"}, "teacher layer is 'nowhere'"),
    ],
)
def test_layers_that_the_teacher_lacks_are_refused_by_check_and_by_start(network, settings, message):
    teacher, guidance = (wrap(network()) if network else make_teacher()), Moments(**settings)
    with pytest.raises(InputError, match=message):
        guidance.check(teacher)
    with pytest.raises(InputError, match=message):
        guidance.start(teacher, condensed_set(), Streams(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 5}, "guidance stages is 5; accepted: an integer, 0 to 4"),
        ({"stages": -1}, "guidance stages is -1; accepted: an integer, 0 to 4"),
        ({"stages_weight": -1.0}, "guidance stages_weight is -1.0; accepted: >= 0, and finite"),
        ({"mixup": 1.5}, "guidance mixup is 1.5; accepted: 0 to 1"),
        ({"mixup": float("nan")}, "guidance mixup is nan; accepted: 0 to 1"),
        ({"noise": -0.1}, "guidance noise is -0.1; accepted: a number >= 0"),
        ({"noise": float("inf")}, "guidance noise is inf; accepted: a number >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Moments(**settings)


@pytest.mark.parametrize("condition", ["auxiliary", "projection", "per_class"])
def test_a_conditional_discriminator_cannot_be_marginal(condition):
    message = "discriminator condition under alignment marginal is .*; accepted: none .* or alignment class"
    with pytest.raises(InputError, match=message):
        Discriminator(condition=condition, alignment="marginal")
    assert Discriminator(condition="none", alignment="marginal").condition == "none"


@pytest.mark.parametrize("form", [Mmd(), Moments(), Gaussian(), Discriminator(condition="none")], ids=lambda f: f.name)
def test_a_marginal_penalty_does_not_depend_on_labels(form):
    form = replace(form, alignment="marginal")
    state = form.init(make_teacher(), RIGHT, PLACES, Streams(0))
    order = torch.randperm(12, generator=RNG)
    found, other = (form.penalty(state, LEFT, labels, rng=RNG) for labels in (PLACES, PLACES[order]))
    # Each call updates the estimates of spectral norms.
    torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-4)


# Perturbation of condensed features.


def compared_features(teacher, **settings):
    """Return the condensed features that one step compares."""
    guide, carried = bound(Moments(**settings), teacher=teacher)
    step(guide, fakes(), teacher)
    return carried.features


def test_mixup_interpolates_two_features_of_a_class():
    teacher, few = make_teacher(), condensed_set()
    seen = teacher.observe(few.images).features
    mixed, plain = compared_features(teacher, mixup=1.0), compared_features(teacher)
    assert not torch.allclose(mixed, plain)
    shares = []
    for row, label in zip(mixed, LABELS, strict=True):
        first, second = seen[few.labels == label]
        share = ((row - first) @ (second - first)) / (second - first).square().sum()
        torch.testing.assert_close(row, first.lerp(second, share), rtol=1e-3, atol=1e-4)
        shares.append(share.item())
    assert all(-1e-4 <= share <= 1 + 1e-4 for share in shares)
    assert sum(1e-3 < share < 1 - 1e-3 for share in shares) >= 3


def test_the_share_of_the_second_feature_is_uniform_up_to_mixup():
    guidance, labels = Moments(mixup=0.5), torch.arange(2).repeat(4000)
    real = labels[:, None].float() * 10 + torch.randn(8000, 1, generator=RNG)
    mixed = guidance.perturbed(None, real, labels, torch.Generator().manual_seed(0))
    again = torch.Generator().manual_seed(0)
    partner = real[same_class_rows(labels, labels, again)]
    share = ((mixed - real) / (partner - real))[(partner - real).abs() > 0.1]
    assert share.min() >= -1e-3
    assert share.max() <= 0.5 + 1e-3
    assert share.mean().item() == pytest.approx(0.25, abs=0.01)
    assert share.std().item() == pytest.approx(0.5 / 12**0.5, abs=0.01)


@pytest.mark.parametrize("stages", [0, 2])
def test_noise_is_in_units_of_each_layers_spread(stages):
    teacher, few = make_teacher(), condensed_set()
    guidance = Moments(noise=0.5, stages=stages)
    _, carried = bound(guidance, teacher=teacher)
    width = carried.features.shape[1]
    noise = guidance.perturbed(carried, torch.zeros(4000, width), torch.zeros(4000).long(), torch.Generator())
    layers = noise.split((16, 4, 8), 1) if stages else (noise,)
    units = [1.0] * 3 if stages else [by_hand(teacher.observe(few.images).features, few.labels)]
    for layer, unit in zip(layers, units, strict=True):
        assert layer.square().sum(1).mean().sqrt().item() == pytest.approx(0.5 * unit, rel=0.05)


# Equal augmentation of both sides.


def host_views(kind, teacher):
    host = small(kind)
    return lambda images, stream: host.augment(images, teacher=teacher, rng=stream)


def distances(guide, teacher, views, rng, steps, shift=0.0):
    """Return the distance that a guide logs in each step for perfect fakes, shifted, under the host's `views`."""
    found, few = [], guide.condensed
    for _ in range(steps):
        images = few.images[same_class_rows(few.labels, LABELS, rng["fakes"])] + shift
        guide.meter = type(guide.meter)("guidance")
        guide.update(images, teacher.observe(views(images, rng["fakes"])), LABELS)
        found.append(next(iter(guide.read().values())))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("augment", ["host", "dsa"])
@pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
def test_the_distance_of_perfect_fakes_equals_that_between_condensed_images(kind, augment):
    teacher, few = make_teacher(), condensed_set(8)
    views = host_views(kind, teacher)
    for form in (Mmd(augment=augment), Moments(augment=augment)):
        guide, _ = bound(form, rng=Streams(0), teacher=teacher, condensed=few, host_augment=views)
        rng = Streams(1)
        found = distances(guide, teacher, views, rng, steps=40)
        # The distance between two draws of condensed images, both augmented as the condensed side.
        between = []
        for _ in range(40):
            one, other = guide.real_features(LABELS), guide.real_features(LABELS)
            between.append(next(iter(form.update(guide.state, one, other, LABELS, rng=rng["none"]).values())).item())
        between = torch.tensor(between, dtype=torch.float64)
        error = ((found.var() + between.var()) / 40) ** 0.5
        assert abs(found.mean() - between.mean()) < 4 * error
        assert distances(guide, teacher, views, rng, steps=10, shift=1.5).mean() > found.mean() + 4 * error


@pytest.mark.parametrize("kind", INVERTERS, ids=lambda kind: kind.__name__)
def test_a_projection_discriminator_stays_at_chance_on_perfect_fakes_under_any_hosts_views(kind):
    teacher, few = make_teacher(), condensed_set(10)
    views = host_views(kind, teacher)
    form = Discriminator(hidden=32, condition="projection", held_out=0.0)
    guide, _ = bound(form, rng=Streams(0), teacher=teacher, condensed=few, host_augment=views)
    found = []
    for _ in range(60):
        images = few.images[same_class_rows(few.labels, LABELS, guide.rng["fakes"])]
        guide.meter = type(guide.meter)("guidance")
        guide.update(images, teacher.observe(views(images, guide.rng["fakes"])), LABELS)
        found.append(guide.read()["guidance/accuracy"])
    found = torch.tensor(found, dtype=torch.float64)
    assert abs(found.mean() - 0.5) < 3.5 * found.std() / 60**0.5
