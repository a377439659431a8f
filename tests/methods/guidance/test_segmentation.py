"""Guides of segmented images: which regions they compare, with which features and classes."""

from dataclasses import replace

import pytest
import torch
from guard import Guard, simulated
from reference import segmentation
from torch import nn

from condkd_ray.core.method import InputError
from condkd_ray.core.rng import Streams
from condkd_ray.core.samples import UNLABELLED, unseen
from condkd_ray.data.augment import shift_flip
from condkd_ray.methods.guidance import Discriminator, FromGuides, Gaussian, Mmd, Moments
from condkd_ray.methods.guidance import guidance as module
from condkd_ray.models.teacher import Teacher
from condkd_ray.testing.guidances import bound, dense_fakes, fakes, shifted, step
from condkd_ray.testing.scenes import SCENE_SHAPE, make_dense_teacher, scenes
from condkd_ray.testing.world import MEAN, STD, make_teacher

REGIONS = 4
FORMS = [Mmd(), Moments(), Gaussian(), Discriminator(hidden=8)]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


class PixelNetwork(nn.Module):
    """Its features are the image itself, and its logits favour class 0."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(1, 4, 1)
        with torch.no_grad():
            self.classifier.weight.zero_()
            self.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, images):
        return self.classifier(images)


def pixel_teacher():
    shape, unit = (1, 6, 8), (1.0,)
    given = {"num_classes": 4, "image_shape": shape, "mean": (0.0,), "std": unit, "train_size": 8, "flip_ok": True}
    return Teacher(PixelNetwork(), **given)


def painted(labels):
    """Return images whose pixels are the numbers of their classes, so that a region's feature is its class."""
    return unseen(labels[:, None].float(), labels)


def halves(*pairs):
    """Return labels (B, 6, 8): the left half of each image has the first class of its pair, the right the second."""
    labels = torch.empty(len(pairs), 6, 8, dtype=torch.int64)
    for row, (left, right) in enumerate(pairs):
        labels[row, :, :4], labels[row, :, 4:] = left, right
    return labels


def moved(images, stream):
    return shift_flip(images, rng=stream, share=0.2, flip=True, black=torch.tensor([9.0, UNLABELLED]).view(1, 2, 1, 1))


class Recording:
    """Keeps the arguments of `penalty`, `update` and `evaluate_held_out` of a guidance."""

    def __init__(self, monkeypatch, kind=Mmd):
        self.penalties, self.updates, self.evaluations = [], [], []

        def penalty(_, state, fake, labels, *, rng):
            self.penalties.append((fake, labels))
            return fake.sum()

        def update(_, state, fake, real, labels, *, rng):
            self.updates.append((fake, real, labels))
            return {}

        def evaluate(_, state, learnt, held_out, fakes, labels, *, rng):
            self.evaluations.append((learnt, held_out, fakes, labels))
            return {}

        for name, function in (("penalty", penalty), ("update", update), ("evaluate_held_out", evaluate)):
            monkeypatch.setattr(kind, name, function)


@pytest.fixture
def recorded(monkeypatch):
    return Recording(monkeypatch)


def pixel_guide(condensed, guidance=None, host_augment=moved):
    guidance = guidance or Mmd(regions=REGIONS)
    given = {"teacher": pixel_teacher(), "condensed": painted(condensed), "host_augment": host_augment}
    return bound(guidance, carried=object(), **given)[0]


def call(guide, labels, images=None):
    images = painted(labels).images if images is None else images
    observation = guide.teacher.observe(images, guide.layers)
    guide.penalty(images, observation, labels)
    guide.update(images, observation, labels)


GUIDES = halves((0, 1), (2, 3), (1, 2))


def test_each_fake_gives_regions_of_its_classes_and_the_real_ones_have_the_same(recorded):
    labels = halves((3, 1), (2, 2), (0, 3), (1, 2))
    guide = pixel_guide(GUIDES)
    for _ in range(5):
        call(guide, labels)
    for (fake, classes), (again, real, shared) in zip(recorded.penalties, recorded.updates, strict=True):
        assert fake.shape == (4 * REGIONS, 1)
        assert [set(row) for row in classes.view(4, REGIONS).tolist()] == [{1, 3}, {2}, {0, 3}, {1, 2}]
        # The features are the classes, so the condensed labels moved with their pixels.
        torch.testing.assert_close(fake[:, 0], classes.float())
        torch.testing.assert_close(real[:, 0], shared.float())
        torch.testing.assert_close(again[:, 0], shared.float())
        assert real.shape == again.shape == (4 * REGIONS, 1)


def test_classes_that_no_guide_shows_are_not_compared(recorded):
    guide = pixel_guide(halves((0, 1), (1, 1)))
    call(guide, halves((0, 3), (2, 3), (1, 2)))
    ((_, classes),) = recorded.penalties
    first, second, third = (set(row) for row in classes.view(3, REGIONS).tolist())
    assert (first, third) == ({0}, {1})
    # The second image shows no known class, and regions of the other images are in its place.
    assert second <= {0, 1}
    ((_, real, shared),) = recorded.updates
    torch.testing.assert_close(real[:, 0], shared.float())


def test_a_class_that_has_left_every_view_is_replaced_on_both_sides(recorded):
    def without_right_half(both, stream):
        return torch.cat([both[..., :4], torch.full_like(both[..., 4:], UNLABELLED)], 3)

    guide = pixel_guide(halves((0, 1), (0, 1)), host_augment=without_right_half)
    call(guide, halves((0, 1), (0, 1), (1, 0)))
    ((_, classes),), ((fake, real, shared),) = recorded.penalties, recorded.updates
    assert set(classes.tolist()) == {0, 1}
    assert len(shared) == len(classes)
    for values in (fake[:, 0], real[:, 0], shared.float()):
        assert torch.equal(values, torch.zeros(3 * REGIONS))


def test_an_image_without_labels_is_replaced_by_regions_of_others(recorded):
    labels = halves((2, 3), (1, 1))
    labels[0] = UNLABELLED
    images = painted(halves((2, 3), (1, 1))).images
    call(pixel_guide(GUIDES), labels, images)
    ((fake, classes),) = recorded.penalties
    assert classes.tolist() == [1] * 2 * REGIONS
    torch.testing.assert_close(fake, torch.ones(2 * REGIONS, 1))


@each_form
def test_nothing_is_nan_if_no_image_shows_a_known_class(form):
    teacher = make_dense_teacher()
    condensed = scenes(8, seed=4).samples(MEAN, STD)
    only_one = replace(condensed, labels=torch.where(condensed.labels == 1, 1, UNLABELLED))
    guide, _ = bound(
        replace(form, covariance="none") if form.name == "gaussian" else form,
        teacher=teacher,
        condensed=only_one,
        host_augment=shifted,
    )
    images = dense_fakes().requires_grad_()
    labels = torch.full((16, *SCENE_SHAPE[1:]), 2)
    observation = teacher.observe(images, guide.layers)
    penalty = guide.penalty(images, observation, labels)
    (gradient,) = torch.autograd.grad(penalty + 0 * images.sum(), images)
    guide.update(images.detach(), observation.detach(), labels)
    assert penalty.isfinite()
    assert gradient.isfinite().all()
    assert all(torch.tensor(value).isfinite() for value in form.read(guide).values())


@pytest.mark.parametrize("layer", ["penultimate", "stages.0"])
def test_features_are_the_means_of_maps_under_the_masks(layer):
    teacher, labels = make_dense_teacher(), scenes(3, seed=6).labels.long()
    images = dense_fakes()[:3]
    guidance = Mmd(layer=layer, stages=1)
    found = guidance.layer_features(teacher, images, labels)
    layers = guidance.tapped_layers(teacher)
    observation = teacher.observe(images, layers)
    for features, name in zip(found, (layer, layers[-1]), strict=True):
        maps = observation.features if name == "penultimate" else observation.taps[name]
        assert features.shape == (3 * 4, maps.shape[1])
        for region in (0, 5, 11):
            mask = (labels[region // 4] == region % 4).double().tolist()
            wanted = segmentation.region_mean(maps[region // 4].double().tolist(), mask)
            torch.testing.assert_close(features[region], torch.tensor(wanted), rtol=1e-4, atol=1e-5)


def test_many_images_are_observed_in_parts_with_equal_features(monkeypatch):
    teacher, real = make_dense_teacher(), scenes(7).samples(MEAN, STD)
    whole = Mmd().layer_features(teacher, real.images, real.labels)
    monkeypatch.setattr(module, "OBSERVED_PIXELS", 2 * 12 * 16)
    torch.testing.assert_close(Mmd().layer_features(teacher, real.images, real.labels), whole)


def test_the_state_begins_with_all_regions_of_the_condensed_images(monkeypatch):
    given = []
    monkeypatch.setattr(Mmd, "init", lambda self, teacher, features, labels, rng: given.append((features, labels)))
    condensed = painted(halves((0, 1), (3, 3), (1, 2)))
    Mmd().start(pixel_teacher(), condensed, Streams(0), moved)
    monkeypatch.setattr(module, "MAX_INIT_FEATURES", 3)
    Mmd().start(pixel_teacher(), condensed, Streams(0), moved)
    for (features, labels), wanted in zip(given, ([0, 1, 3, 1, 2], [0, 3, 2]), strict=True):
        assert labels.tolist() == wanted
        torch.testing.assert_close(features[:, 0], labels.float())


def test_views_of_a_region_that_has_left_the_image_have_its_features_without_augmentation(monkeypatch):
    given = []

    def init(self, teacher, features, labels, rng, layout):
        given.append((features, labels, layout))

    monkeypatch.setattr(Gaussian, "init", init)

    def without_right_half(both, stream):
        return torch.cat(
            [both[..., :4] + torch.tensor([0.5, 0]).view(1, 2, 1, 1), torch.full_like(both[..., 4:], UNLABELLED)], 3
        )

    Gaussian(views=3).start(pixel_teacher(), painted(halves((0, 1), (2, 3))), Streams(0), without_right_half)
    ((features, labels, layout),) = given
    assert layout.views == 3
    assert labels.tolist() == [0, 1, 2, 3] * 3
    torch.testing.assert_close(features[:, 0], torch.tensor([0.5, 1.0, 2.5, 3.0]).repeat(3))


def test_whole_images_are_held_out(recorded):
    condensed = painted(halves((0, 1), (1, 2), (0, 2), (3, 2)))
    learnt, held_out = Discriminator(held_out=0.5).hold_out(condensed, 4)
    assert torch.equal(learnt.labels, condensed.labels[:2])
    assert torch.equal(held_out.labels, condensed.labels[2:])
    assert [len(part) for part in Discriminator(held_out=0.1).hold_out(condensed, 4)] == [4, 0]


def test_terms_on_held_out_images_compare_regions_of_equal_classes(monkeypatch):
    recorded = Recording(monkeypatch, Discriminator)
    guidance = Discriminator(held_out=0.34, regions=REGIONS)
    guide = pixel_guide(halves((0, 1), (1, 2), (3, 2)), guidance)
    guide.read()
    ((learnt, held_out, fakes, labels),) = recorded.evaluations
    # Class 3 is shown by the held-out image only, and so it is not compared.
    assert set(labels.tolist()) == {2}
    assert len(labels) == 16 * REGIONS
    for features in (learnt, held_out, fakes):
        torch.testing.assert_close(features[:, 0], labels.float())


@each_form
def test_the_penalty_pulls_features_towards_those_of_the_condensed_classes(form):
    """Steps on pixels by the penalty alone bring the class means of all regions closer to the condensed ones."""
    form = replace(form, weight=1.0)
    teacher, labels = make_dense_teacher(), scenes(16, seed=5).labels.long()
    guide, _ = bound(form, teacher=teacher)
    condensed = scenes(8, seed=4).samples(MEAN, STD)

    def class_means(images, masks):
        regions = form.layer_features(teacher, images, masks)[0].view(len(images), 4, -1)
        there = torch.stack([(masks == k).flatten(1).any(1) for k in range(4)], 1)
        return (regions * there[..., None]).sum(0) / there.sum(0)[:, None]

    wanted = class_means(condensed.images, condensed.labels)

    def distance(images):
        with torch.no_grad():
            return (class_means(images, labels) - wanted).square().sum().item()

    images = dense_fakes().requires_grad_()
    optimizer, before = torch.optim.Adam([images], 0.05), distance(images)
    for _ in range(40):
        observation = teacher.observe(images, guide.layers)
        penalty = guide.penalty(images, observation, labels)
        optimizer.zero_grad()
        (images.grad,) = torch.autograd.grad(penalty, images)
        optimizer.step()
        guide.update(images.detach(), observation.detach(), labels)
    assert distance(images) < before / 2


@each_form
def test_no_step_waits_for_the_device(form, monkeypatch):
    def numbers(shown):
        return torch.arange(shown.numel(), device=shown.device)

    monkeypatch.setattr(module, "region_numbers", numbers)
    # The shrinkage of a covariance is computed on the host before the first round.
    monkeypatch.setattr(Gaussian, "pooled_covariance", lambda self, features, labels, views: features.T @ features)
    with simulated():
        teacher = make_dense_teacher().to("meta")
        real, labels = scenes(8, seed=4).samples(MEAN, STD).to("meta"), scenes(16).labels.long().to("meta")
        given = {"teacher": teacher, "condensed": real, "host_augment": lambda images, _: images}
        guide, _ = bound(replace(form, mixup=0.0), rng=Streams(0, "meta"), **given)
        images = dense_fakes().to("meta")
        for _ in range(2):
            with Guard():
                observation = teacher.observe(images, guide.layers)
                guide.penalty(images, observation, labels)
                guide.update(images, observation, labels)


@each_form
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"augment": "dsa"}, "guidance augment in segmentation is 'dsa'; accepted: host"),
        ({"augment": "condensed"}, "guidance augment in segmentation is 'condensed'; accepted: host"),
        ({"from_guides": FromGuides(share=0.5)}, "from_guides share in segmentation is 0.5; accepted: 0"),
    ],
)
def test_settings_that_do_not_suit_segmentation_are_refused(form, changes, problem):
    with pytest.raises(InputError, match=problem):
        replace(form, **changes).check(make_dense_teacher())


def test_other_bad_input_is_refused():
    with pytest.raises(InputError, match="guidance regions is 0; accepted: an integer >= 1"):
        Mmd(regions=0)
    condensed = scenes(2).samples(MEAN, STD)
    blank = replace(condensed, labels=torch.full_like(condensed.labels, UNLABELLED))
    with pytest.raises(InputError, match="labelled pixels of the condensed set is 0; accepted: at least 1"):
        Mmd().start(make_dense_teacher(), blank, Streams(0))


def test_a_gaussian_needs_two_regions_of_each_class():
    teacher = make_dense_teacher()
    with pytest.raises(InputError, match="inversion batch under guidance gaussian is 1; accepted: 2 or more"):
        Gaussian(regions=4).check_use(teacher, 5, 1, shifted)
    Gaussian(regions=4).check_use(teacher, 5, 2, shifted)
    Gaussian(regions=8).check_use(teacher, 5, 1, shifted)


def test_the_number_of_regions_has_no_effect_in_classification():
    found = [step(bound(Mmd(regions=regions))[0], fakes(), make_teacher()) for regions in (4, 9)]
    assert all(map(torch.equal, *found))
